"""A Network as a NIR graph, or every reason why it has none.

One node a layer, but for ATMN (`nir_atmn`), and Scale nodes where signals of different worth meet. A neuron's
spike is worth its threshold in marsnn and 1 in NIR, so the worth is folded into the weights that follow.
`Recurrent` is a sub-graph with the neuron and the weights of its way back, as snnTorch writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import marsnn
from marsnn.errors import ExportError
from marsnn.hardware import nir_atmn
from marsnn.hardware.nir_atmn import TAG
from marsnn.hardware.nir_units import FiresAt, Reals, resistance, time_constant, to_file
from marsnn.network import Network, Signal, evaluating
from marsnn.neurons import ATMN, LIF, PLIF, TMN, CubaLIF, LeakyIntegrator, Recurrent
from marsnn.neurons.base import Neuron

if TYPE_CHECKING:
    import nir

SILENT = (nn.Identity, nn.Dropout)
"""Layers that do nothing at inference: their edges join."""

STEPPED = (LIF, PLIF, CubaLIF, LeakyIntegrator)
"""Neurons whose every micro-step is one step of NIR."""

COUNTED = (ATMN, TMN)
"""Neurons of which NIR sees one value a token."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Wire:
    """Where a signal comes from."""

    node: str
    worth: Reals  # [*D]; the node's output times this is marsnn's signal


def graph_of(
    network: Network,
    shape: Shape,
    dt: float,
    fires_at: FiresAt,
    unit_resistance: bool,
    allow: Sequence[str],
) -> nir.NIRGraph:
    """The graph of a network on x [L, B, *shape]; see `marsnn.hardware.nir.to_nir`."""
    import nir

    writer = _Writer(network, shape, dt, fires_at, unit_resistance, "soft-reset" in allow)
    writer.run()
    if writer.refusals:
        raise ExportError(writer.refusals)
    stepped = list(_stepped(network).values())
    about = {
        TAG: marsnn.__version__,
        "dt": dt,
        "fires_at": fires_at,
        "steps": network.steps,
        "clock": "step" if stepped else "token",
        "carry": stepped[0].carry if stepped else "token",
    }
    return nir.NIRGraph(writer.nodes, writer.edges, metadata=about)


class _Writer:
    """Goes through the layers once, in order, collecting nodes, edges and refusals."""

    def __init__(
        self,
        network: Network,
        shape: Shape,
        dt: float,
        fires_at: FiresAt,
        unit_resistance: bool,
        soft_reset: bool,
    ) -> None:
        self.network, self.dt, self.fires_at = network, dt, fires_at
        self.unit_resistance, self.soft_reset = unit_resistance, soft_reset
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.refusals: list[str] = []
        self.biases: dict[str, Reals] = {}  # of ways back, until they have a place
        parameters = [*network.parameters(), *network.buffers()]
        self.dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
        self.shape = shape

    def run(self) -> None:
        import nir

        network = self.network
        if self.dtype not in (torch.float32, torch.float64):
            self.refusals.append(f"the network is {self.dtype}; make it float32 or float64: network.float()")
            return
        shapes = shapes_of(network, self.shape, self.dtype)
        self.refusals += _clocks(network)
        self._add("input", nir.Input(np.array(self.shape)))
        wires = {"input": [self._wire("input", shapes["input"])]}
        before = "input"
        for name, layer in network.layers.items():
            sources = [wire for each in (before, *network.skips.get(name, ())) for wire in wires[each]]
            into = shapes[before]
            if isinstance(layer, SILENT):
                wires[name] = sources
            else:
                wires[name] = [self._layer(name, layer, sources, into, shapes[name])]
            before = name
        end = "output" if "output" not in self.nodes else "output_"
        self._add(end, nir.Output(np.array(shapes[before])))
        if len(wires[before]) == 1:  # a trailing neuron gives its bare spikes
            self.edges.append((wires[before][0].node, end))
        else:
            self._join(end, wires[before])
        for name, bias in self.biases.items():
            self._fold(name, bias)

    # ---- one layer --------------------------------------------------------------------------------------

    def _layer(self, name: str, layer: nn.Module, sources: list[Wire], into: Shape, out: Shape) -> Wire:
        writers: dict[type[nn.Module], Callable[..., Reals]] = {
            nn.Linear: self._linear,
            nn.Conv1d: self._conv,
            nn.Conv2d: self._conv,
            nn.AvgPool2d: self._pool,
            nn.Flatten: self._flatten,
        }
        unmappable: Any = self._unmappable_neuron if isinstance(layer, Neuron) else _unmappable
        reason = unmappable(layer, into)
        if reason:
            self.refusals.append(f"{name}: {reason}")
            return self._wire(name, out)
        write: Any = self._neuron if isinstance(layer, Neuron) else writers[type(layer)]
        return Wire(name, np.broadcast_to(write(name, layer, sources, into, out), out))

    def _linear(self, name: str, layer: nn.Linear, sources: list[Wire], into: Shape, out: Shape) -> Reals:
        import nir

        weight = _real(layer.weight) * self._join(name, sources)
        if layer.bias is None:
            self._add(name, nir.Linear(weight))
        else:
            self._add(name, nir.Affine(weight, _real(layer.bias)))
        return self._one()

    def _conv(
        self, name: str, layer: nn.Conv1d | nn.Conv2d, sources: list[Wire], into: Shape, out: Shape
    ) -> Reals:
        import nir

        summing = _sums(layer)
        worth = self._join(name, sources, by_channel=True)
        padding = _numbers(layer.padding, layer)
        assert padding is not None  # refused before
        if summing:
            self._add(name, nir.SumPool2d(*map(np.array, (layer.kernel_size, layer.stride, padding))))
            return _channels(worth, out)
        channels = worth.reshape(worth.shape[0], -1)[:, 0]
        weight = _real(layer.weight) * channels.reshape(-1, *[1] * (layer.weight.ndim - 2))
        bias = np.zeros(len(weight), weight.dtype) if layer.bias is None else _real(layer.bias)
        if isinstance(layer, nn.Conv1d):
            (stride,), (dilation,) = layer.stride, layer.dilation
            node: Any = nir.Conv1d(into[-1], weight, stride, padding[0], dilation, 1, bias)
        else:
            node = nir.Conv2d(into[1:], weight, layer.stride, padding, layer.dilation, 1, bias)  # type: ignore[arg-type]
        node.metadata = {TAG: type(layer).__name__, "bias": layer.bias is not None}
        self._add(name, node)
        return self._one()

    def _pool(self, name: str, layer: nn.AvgPool2d, sources: list[Wire], into: Shape, out: Shape) -> Reals:
        import nir

        worth = self._join(name, sources, by_channel=True)
        kind = nir.AvgPool2d if layer.divisor_override is None else nir.SumPool2d
        self._add(name, kind(*(np.array(_pair(v)) for v in (layer.kernel_size, layer.stride, layer.padding))))
        return _channels(worth, out)

    def _flatten(self, name: str, layer: nn.Flatten, sources: list[Wire], into: Shape, out: Shape) -> Reals:
        import nir

        worth = self._join(name, sources)
        # From the end: some importers count the batch among the axes, and some don't.
        start, end = (d - 1 - len(into) if d > 0 else d for d in (layer.start_dim, layer.end_dim))
        self._add(name, nir.Flatten({"input": np.array(into)}, start, end))
        return worth.reshape(out)

    def _neuron(self, name: str, neuron: Neuron, sources: list[Wire], into: Shape, out: Shape) -> Reals:
        if isinstance(neuron, ATMN):
            form = nir_atmn.count_form(name, neuron, out, self.fires_at)
            names = [self._scaled(wire) for wire in sources]
            self._check_once(name, names)
            self.nodes.update(form.nodes)
            self.edges += [(node, entry) for entry in form.entries for node in dict.fromkeys(names)]
            self.edges += form.edges
            return self._one()
        worth = self._join(name, sources)
        cell = neuron.neuron if isinstance(neuron, Recurrent) else neuron
        node, worth_out = self._cell(cell, worth, out)
        self._add(name, self._loop(name, neuron, node, worth, worth_out) if cell is not neuron else node)
        return worth_out

    def _cell(self, neuron: Neuron, worth: Reals, out: Shape) -> tuple[nir.NIRNode, Reals]:
        """The node of a neuron that takes steps, and the worth of its spike. That of what arrives goes into
        the resistance: h = beta v + (dt r / tau) I."""
        import nir

        beta = self._setting(neuron, neuron.beta, out)  # type: ignore[arg-type]
        leaking = bool((beta < 1).all())
        zero = np.zeros(out)
        tau = time_constant(beta, self.dt) if leaking else zero
        r = (resistance(tau, self.dt) if leaking else np.full(out, 1 / self.dt)) * worth
        about: dict[str, Any] = {TAG: type(neuron).__name__, "feature_dim": neuron.feature_dim}
        if isinstance(neuron, LeakyIntegrator):
            node: Any = nir.LI(tau, r, zero) if leaking else nir.I(r)
            worth_out = self._one()
        else:
            worth_out = self._setting(neuron, neuron.threshold, out)  # type: ignore[arg-type]
            threshold = to_file(worth_out, self.fires_at)
            about["reset"] = neuron.reset  # type: ignore[union-attr]
            if isinstance(neuron, CubaLIF):
                tau_syn = time_constant(self._setting(neuron, neuron.alpha, out), self.dt)
                w_in = resistance(tau_syn, self.dt) * worth
                r = resistance(tau, self.dt)
                node = nir.CubaLIF(
                    tau_syn=tau_syn, tau_mem=tau, r=r, v_leak=zero, v_threshold=threshold,
                    v_reset=np.zeros_like(threshold), w_in=w_in,
                )  # fmt: skip
            elif not leaking:
                node = nir.IF(r=r, v_threshold=threshold, v_reset=np.zeros_like(threshold))
            else:
                if self.unit_resistance:
                    scaled = (worth_out * (1 - beta) / worth).astype(worth_out.dtype)
                    r, threshold = np.ones(out), to_file(scaled, self.fires_at)
                rest = np.zeros_like(threshold)
                node = nir.LIF(tau=tau, r=r, v_leak=zero, v_threshold=threshold, v_reset=rest)
        node.metadata = about
        return node, worth_out

    def _loop(
        self, name: str, neuron: Any, cell: nir.NIRNode, worth: Reals, worth_out: Reals
    ) -> nir.NIRGraph:
        """The sub-graph of a Recurrent. What comes back adds to what arrives, so it is in that unit."""
        import nir

        back = neuron.recurrent
        if back.bias is not None:
            self.biases[name] = _real(back.bias)
        size = np.array([back.in_features])
        nodes = {
            "input": nir.Input(size),
            "lif": cell,
            "w_rec": nir.Linear(_real(back.weight) * worth_out / worth.reshape(-1, 1)),
            "output": nir.Output(size),
        }
        # "output" last: norse gives what its last node gives.
        edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
        return nir.NIRGraph(nodes, edges, metadata={TAG: "Recurrent"})

    def _fold(self, name: str, bias: Reals) -> None:
        """Put the bias of a way back into a Linear that leads to the neuron alone. Importers hold back what a
        way back gives by a step, its bias too, which would be missing at the first."""
        import nir

        for source in [a for a, b in self.edges if b == name]:
            node = self.nodes[source]
            if type(node) in (nir.Linear, nir.Affine) and sum(a == source for a, _ in self.edges) == 1:
                own = node.bias if isinstance(node, nir.Affine) else np.zeros_like(bias)
                self.nodes[source] = nir.Affine(node.weight, own + bias)  # type: ignore[union-attr]
                return
        self.refusals.append(
            f"{name}: importers have the bias of what comes back a step late, and no Linear leads to it "
            "alone that could take it; put one before it, or use bias=False"
        )

    def _unmappable_neuron(self, neuron: Neuron, into: Shape) -> str | None:
        kind = type(neuron)
        if isinstance(neuron, Recurrent) and kind is Recurrent:
            if len(into) != 1:
                return f"couples the channels of {list(into)}, and NIR's Linear takes vectors; flatten first"
            return self._unmappable_neuron(neuron.neuron, into)
        if kind in COUNTED:
            return nir_atmn.unmappable(neuron)  # type: ignore[arg-type]
        if kind not in STEPPED:
            return (
                f"{neuron._get_name()} has no node in NIR; use LIF, PLIF or CubaLIF with reset='zero', "
                "LeakyIntegrator, Recurrent around one of these, or ATMN with tau >= 1"
            )
        if getattr(neuron, "reset", "zero") == "subtract" and not self.soft_reset:
            return (
                "reset='subtract', and NIR's neurons reset to a value; use reset='zero', or write the hard "
                "reset in its place with allow=('soft-reset',)"
            )
        decays = [_real(neuron.beta)]  # type: ignore[arg-type]
        if isinstance(neuron, CubaLIF):
            decays.append(_real(neuron.alpha))
        if isinstance(neuron, CubaLIF) and any((decay == 1).any() for decay in decays):
            return (
                "a decay of 1 is an infinite time constant, which NIR's CubaLIF can't hold; use one below 1"
            )
        if (decays[0] == 1).any() and (decays[0] < 1).any():
            return (
                "beta is 1 for some neurons and not for all: NIR's LIF leaks, its IF doesn't; use one of them"
            )
        return None

    # ---- signals ----------------------------------------------------------------------------------------

    def _join(self, target: str, sources: list[Wire], by_channel: bool = False) -> Reals:
        """Lead the sources into a node. Their common worth; where they have none, Scale nodes and 1."""
        first = sources[0].worth
        common = all(np.array_equal(first, wire.worth) for wire in sources)
        if common and not (by_channel and not _is_by_channel(first)):
            names = [wire.node for wire in sources]
        else:
            names, first = [self._scaled(wire) for wire in sources], np.ones_like(first)
        self._check_once(target, names)
        self.edges += [(name, target) for name in dict.fromkeys(names)]
        return first

    def _check_once(self, target: str, names: list[str]) -> None:
        for twice in {name for name in names if names.count(name) > 1}:
            self.refusals.append(f"{target}: takes {twice} twice, and NIR has one edge between two nodes")

    def _scaled(self, wire: Wire) -> str:
        import nir

        if bool((wire.worth == 1).all()):
            return wire.node
        name = f"{wire.node}.worth"
        if name not in self.nodes:
            self._add(name, nir.Scale(wire.worth.copy(), metadata={TAG: f"worth of {wire.node}"}))
            self.edges.append((wire.node, name))
        return name

    def _add(self, name: str, node: nir.NIRNode) -> None:
        assert name not in self.nodes
        self.nodes[name] = node

    def _wire(self, name: str, shape: Shape) -> Wire:
        return Wire(name, np.broadcast_to(self._one(), shape))

    def _one(self) -> Reals:
        return np.ones((), dtype=np.float32 if self.dtype == torch.float32 else np.float64)

    def _setting(self, neuron: Neuron, setting: Tensor, shape: Shape) -> Reals:
        value = _real(setting)
        value = value.reshape(-1, *[1] * (-neuron.feature_dim - 1)) if value.ndim else value
        return np.broadcast_to(value, shape).copy()


def _stepped(network: Network) -> dict[str, Neuron]:
    """The neurons whose steps are NIR's, by name."""
    found = {}
    for name, neuron in network.neurons.items():
        if isinstance(neuron.neuron if isinstance(neuron, Recurrent) else neuron, STEPPED):
            found[name] = neuron
    return found


# ---- what can't be written -----------------------------------------------------------------------------


def _clocks(network: Network) -> list[str]:
    """NIR has one clock: a step. Refuse what would need two, or a state that ends for some neurons only."""
    refusals = []
    stepped = list(_stepped(network))
    counted = [name for name, neuron in network.neurons.items() if isinstance(neuron, COUNTED)]
    if stepped and network.steps > 1:
        refusals += [
            f"{name}: one value a token beside {stepped[0]}, which takes T = {network.steps} steps a token: "
            "NIR has one clock and no train of ternary steps; use neurons of one kind, or steps=1"
            for name in counted
        ]
    carries = {name: network.neurons[name].carry for name in stepped}
    for name, carry in carries.items():
        if carry != carries[stepped[0]]:
            refusals.append(
                f"{name}: carry={carry!r} beside {stepped[0]} with {carries[stepped[0]]!r}: whoever runs a "
                "NIR graph resets all of it or nothing; use one carry"
            )
    return refusals


def _unmappable(layer: nn.Module, into: Shape) -> str | None:
    """Why a layer that is no neuron has no node in NIR, or None."""
    kind = type(layer)
    if kind is nn.Linear:
        if len(into) != 1:
            return f"acts on the last axis of {list(into)}, and NIR's Linear takes vectors; flatten first"
        return None
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and kind in (nn.Conv1d, nn.Conv2d):
        if layer.padding_mode != "zeros":
            return f"padding_mode={layer.padding_mode!r}; NIR pads with zeros"
        if layer.groups != 1 and not _sums(layer):
            return f"groups={layer.groups}, for which nir 1.0.8 infers wrong shapes; use groups=1"
        if len(set(layer.kernel_size)) > 1:
            return f"kernel_size={layer.kernel_size}: nir 1.0.8 takes its first side for all; make it square"
        if _numbers(layer.padding, layer) is None:
            return "padding='same' with an even kernel pads one side more, which NIR can't say; use a number"
        return None
    if isinstance(layer, nn.AvgPool2d) and kind is nn.AvgPool2d:
        if layer.ceil_mode or layer.divisor_override not in (None, 1):
            return "ceil_mode or a divisor_override other than 1, which NIR's pools don't have"
        if not layer.count_include_pad and any(_pair(layer.padding)):
            return "count_include_pad=False with padding, which NIR's AvgPool2d doesn't have"
        return None
    if kind is nn.Flatten:
        return None
    return (
        f"{layer._get_name()} has no node in NIR, which maps Linear, Conv1d, Conv2d, AvgPool2d, Flatten and "
        "neurons"
    )


def _sums(layer: nn.Module) -> bool:
    """Whether a convolution adds up each channel by itself: NIR's SumPool2d, as the reader gives it."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == layer.in_channels == layer.out_channels
        and layer.groups > 1
        and layer.bias is None
        and layer.dilation == (1, 1)
        and bool((layer.weight == 1).all())
    )


def _numbers(padding: Any, layer: nn.Conv1d | nn.Conv2d) -> tuple[int, ...] | None:
    """A convolution's padding as one number an axis; None where the two sides differ."""
    if padding == "valid":
        return (0,) * len(layer.kernel_size)
    if padding == "same":
        both = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return None if any(b % 2 for b in both) else tuple(b // 2 for b in both)
    return tuple(padding)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


# ---- shapes --------------------------------------------------------------------------------------------


class _Shapes:
    """A listener that notes the shape of every layer's output."""

    membrane = False

    def __init__(self) -> None:
        self.found: dict[str, Shape] = {}

    def neuron(self, name: str, neuron: Neuron, spikes: Tensor, membrane: Tensor | None) -> None:
        self.found[name] = tuple(spikes.shape[3:])

    def layer(self, name: str, layer: nn.Module, source: Signal, output: Signal) -> None:
        self.found[name] = tuple(output.decoded().shape[2:])


def shapes_of(network: Network, shape: Shape, dtype: torch.dtype) -> dict[str, Shape]:
    """Output shape of every layer without its leading axes, and of "input"; an error names the layer."""
    listener = _Shapes()
    device = next((tensor.device for tensor in network.state_dict().values()), None)
    with torch.no_grad(), evaluating(network):
        network.run(torch.zeros(1, 1, *shape, dtype=dtype, device=device), listeners=[listener])
    return {"input": shape, **listener.found}


def _is_by_channel(worth: Reals) -> bool:
    flat = worth.reshape(worth.shape[0], -1)
    return bool((flat == flat[:, :1]).all())


def _channels(worth: Reals, shape: Shape) -> Reals:
    """A worth that differs by channel alone, on another height and width."""
    return np.broadcast_to(
        worth.reshape(worth.shape[0], -1)[:, :1].reshape(-1, *[1] * (len(shape) - 1)), shape
    )


def _real(tensor: Tensor) -> Reals:
    return tensor.detach().cpu().numpy().copy()
