"""A network of stock LIFs as a netx file: written, read back, counted.

To netx it is a file as any other. The group marsnn says beside the golden run which LIFs stand for which
neuron (`rails`) and holds the readout, which the host sums; so all follows from spikes, without marsnn:

    counts = worth . (spikes of rail + minus spikes of rail -)
    sums   = (counts @ weight.T << shift) + bias                 outputs = sums * unit

Needs h5py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marsnn.energy.counts import LayerCounts, OperationCounts
from marsnn.errors import FileError
from marsnn.files import PathLike
from marsnn.hardware.chip import Chip
from marsnn.hardware.loihi import LoihiModel, LoihiRun
from marsnn.hardware.netx_file import read_arrays, read_file, write_model
from marsnn.hardware.place import events_of, place
from marsnn.hardware.placement import Placement, line_of
from marsnn.hardware.price import ModePrice, priced, synapse_counts
from marsnn.hardware.stages import LARGEST_SHIFT, STATE_MAX, WEIGHT_MAX, Ints, Synapse
from marsnn.hardware.stock import Lifs, Rails, Readout

MODE = "stock-lif"


@dataclass(frozen=True)
class StockNet:
    """A network of stock LIFs on disk.

    Attributes:
        path: the netx file.
        lifs: the LIFs, what they stand for, and the readout.
        inputs: the golden inputs in integers, [W, D].
        golden: the spikes of all LIFs for them.
        header: what else the file says: input_scale, units, drift, micro_steps.
    """

    path: Path
    lifs: Lifs
    inputs: Ints
    golden: LoihiRun
    header: Mapping[str, Any]

    @property
    def model(self) -> LoihiModel:
        """The integers of the LIFs; runs in numpy alone."""
        return self.lifs.model

    def counts(self, run: LoihiRun | None = None) -> dict[str, Ints]:
        """Population -> counts [W, N] of a run of `model`, or of the golden one."""
        spikes = (run or self.golden).spikes
        return {rails.name: rails.counts(spikes[rails.name][:, 0]) for rails in self.lifs.rails}

    def sums(self, run: LoihiRun | None = None) -> Ints:
        """The readout's sums [W, C] in integers, as the host computes them.

        Raises:
            FileError: the network ends with neurons.
        """
        if self.lifs.readout is None:
            raise FileError(f"{self.path}: ends with neurons, not with a readout")
        return self.lifs.readout.sums(self.counts(run)[self.lifs.rails[-1].name])

    def outputs(self, run: LoihiRun | None = None) -> NDArray[np.float64]:
        """The same in real numbers."""
        sums = self.sums(run)
        assert self.lifs.readout is not None
        units = np.asarray(self.header["units"][self.lifs.readout.name], dtype=np.float64)
        return sums.astype(np.float64) * units

    def operations(self) -> OperationCounts:
        """Operations of the golden run, as `counts_of` counts them; a readout's are the host's.

        A LIF costs two additions a token: its bias, and the comparison with the threshold.
        """
        return operations_of(self.lifs, self.inputs, self.golden)

    def price(self) -> ModePrice:
        """What the network asks for; see `ModePrice`."""
        layers = self.model.layers
        return priced(
            MODE,
            self.operations(),
            [self.inputs, *self.golden.spikes.values()],
            steps=1,
            latency=len(layers),
            neurons=sum(layer.shape[0] for layer in layers),
            synapses=sum(int(np.count_nonzero(layer.weight)) for layer in layers),
        )

    def placement(self, profile: PathLike | Chip = "loihi1", **search: Any) -> Placement:
        """Where its LIFs lie, with the events of the golden run; see `marsnn.hardware.place`."""
        return place(self.model, profile, events_of(self.golden), **search)

    def text(self) -> str:
        """For people: the price, the room, and how far the integers are from the float network."""
        rows = [
            f"{row['name']}: {row['end_to_end']:.2%} of spike slots differ from the floats, "
            f"{row['teacher_forced']:.2%} by its own rounding"
            for row in self.header["drift"]["layers"]
        ]
        return "\n".join([self.price().text(), line_of(self.placement(effort=0).to_dict()), *rows])


def operations_of(lifs: Lifs, inputs: Ints, run: LoihiRun) -> OperationCounts:
    """Operations of a run of W tokens; a matrix of the original weights is the dense twin."""
    counts = OperationCounts(tokens=len(inputs), steps=1)
    sent, graded, before = inputs[:, None].astype(np.int64), True, None
    for rails, layer in zip(lifs.rails, lifs.model.layers, strict=True):
        synapse = Synapse(f"{layer.name}.weight", "", "in", "dense", "value", layer.weight)
        twin = rails.neurons * (inputs.shape[1] if before is None else before.neurons) * len(inputs)
        counts.layers[synapse.name] = replace(synapse_counts(synapse, sent, graded), baseline_mac=twin)
        spikes = run.spikes[layer.name].astype(np.int64)
        biased = int(np.count_nonzero(layer.bias)) * len(inputs)
        counts.layers[layer.name] = LayerCounts(
            add=biased + spikes.size, spikes=int(spikes.sum()), neuron_updates_active=spikes.size,
            bytes_moved=spikes.size,
        )  # fmt: skip
        sent, graded, before = spikes, False, rails
    if lifs.readout is not None and before is not None:
        of = lifs.readout
        synapse = Synapse(of.name, "", "in", "dense", "sum", before.spread(of.weight))
        row = replace(synapse_counts(synapse, sent, graded), baseline_mac=of.weight.size * len(inputs))
        counts.layers[of.name] = row + LayerCounts(add=int(np.count_nonzero(of.bias)) * len(inputs))
    return counts


# ---- files -------------------------------------------------------------------------------------------


def write_stock(path: PathLike, lifs: Lifs, inputs: Ints, header: Mapping[str, Any]) -> StockNet:
    """Write LIFs as a netx file, with the golden run of `inputs` [W, D]."""
    golden = lifs.model.run(inputs)
    arrays, readout = {}, None
    if lifs.readout is not None:
        arrays = {"readout_weight": lifs.readout.weight, "readout_bias": lifs.readout.bias}
        readout = {"name": lifs.readout.name, "shift": lifs.readout.shift}
    values = {
        **header,
        "mode": MODE,
        "rails": [asdict(rails) for rails in lifs.rails],
        "readout": readout,
    }
    net = StockNet(Path(path), lifs, inputs, golden, values)
    values["price"] = net.price().to_dict()
    write_model(path, lifs.model, inputs, golden, values, arrays)
    return net


def read_stock(path: PathLike) -> StockNet:
    """A netx file that was exported in the mode "stock-lif".

    Raises:
        FileError: it is another file, or damaged.   MissingDependencyError: h5py is not installed.
    """
    model, header, inputs, golden = read_file(path)
    if header.get("mode") != MODE or inputs is None or golden is None:
        raise FileError(f'{path}: was not exported in the mode "{MODE}"; read_netx reads other files')
    try:
        rails = tuple(
            Rails(str(row["name"]), int(row["neurons"]), tuple(int(each) for each in row["worth"]))
            for row in header["rails"]
        )
        own = header["readout"]
        name, shift = (None, 0) if own is None else (str(own["name"]), int(own["shift"]))
        float(header["input_scale"])
        units = header["units"]
        fits = [(each.name, (each.lifs,)) for each in rails] == [(x.name, x.shape) for x in model.layers]
        fits = fits and all(x.kind == "dense" and x.recurrent is None for x in model.layers)
        assert isinstance(header["drift"]["layers"], list)
    except (AssertionError, KeyError, OverflowError, TypeError, ValueError):
        raise FileError(f"{path}: its header is damaged; export it again") from None
    if not fits or not rails or not 0 <= shift <= LARGEST_SHIFT:
        raise FileError(f"{path}: its header does not fit its layers; export it again")
    readout = None
    if name is not None:
        arrays = read_arrays(
            path,
            {"readout_weight": (2, -WEIGHT_MAX, WEIGHT_MAX), "readout_bias": (1, -STATE_MAX, STATE_MAX)},
        )
        weight, bias = arrays["readout_weight"], arrays["readout_bias"]
        if weight.shape != (len(bias), rails[-1].neurons) or len(units.get(name, ())) != len(bias):
            raise FileError(f"{path}: its readout does not fit its last layer; export it again")
        readout = Readout(name, weight, bias, shift)
    return StockNet(Path(path), Lifs(model, rails, readout), inputs, golden, header)
