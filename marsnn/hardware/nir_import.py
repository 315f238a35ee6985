"""A NIR graph as a Network, or every node for which it can't be one.

The conventions of `nir_units` undone: a gain on the current, the worth of a spike and NIR's strict threshold
go into marsnn's thresholds and weights, since a neuron that resets to where it rests can be counted in any
unit. `units` says in which: the signal of a layer here is the unit times what its node gives in the file.
A neuron and a Linear from it back to it are a `Recurrent`, in the row or in a sub-graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from marsnn.hardware import nir_atmn
from marsnn.hardware.nir_atmn import TAG
from marsnn.hardware.nir_units import NEAR_ONE, FiresAt, Reals, decay, from_file, gain
from marsnn.network import Network
from marsnn.neurons import LIF, CubaLIF, LeakyIntegrator, Recurrent
from marsnn.neurons.base import Carry, Neuron

if TYPE_CHECKING:
    import nir

LARGEST_EDGES = 2**18  # of a graph whose sub-graphs are opened


class UnreadableError(Exception):
    """Why a node can't be read; collected, then told all at once."""


@dataclass(frozen=True)
class Conventions:
    """What a NIR file leaves open."""

    dt: float
    fires_at: FiresAt
    steps: int
    carry: Carry


@dataclass
class Edge:
    """A connection, with the Scale nodes on its way multiplied."""

    source: str
    target: str
    scale: Reals = field(default_factory=lambda: np.ones(()))


def network_of(graph: nir.NIRGraph, conventions: Conventions) -> tuple[Network | None, list[str]]:
    """The network, or None and the refusals, each naming its node."""
    reader = _Reader(graph, conventions)
    try:
        network = reader.run()
    except UnreadableError as error:
        reader.refusals.append(str(error))
        network = None
    return (None if reader.refusals else network), reader.refusals


class _Reader:
    """Contracts what stands for one layer, puts the nodes in a row, and builds them in that order."""

    def __init__(self, graph: nir.NIRGraph, conventions: Conventions) -> None:
        self.graph = graph
        self.conventions = conventions
        self.refusals: list[str] = []
        self.nodes: dict[str, Any] = {}
        self.edges: list[Edge] = []
        self.loops: dict[str, tuple[str, Any]] = {}  # a neuron's way back: the Linear's name and node
        self.built: dict[str, nn.Module] = {}
        self.units: dict[str, Reals] = {}
        self.dtype = torch.float32

    def run(self) -> Network | None:
        import nir

        self.nodes, edges = _flat(self.graph)
        for end in (end for edge in edges for end in edge):
            if end not in self.nodes:
                raise UnreadableError(f"{end}: an edge leads to it, and there is no such node")
        self.edges = [Edge(source, target) for source, target in edges]
        weights = [np.asarray(node.weight) for node in self.nodes.values() if hasattr(node, "weight")]
        if any(weight.dtype == np.float64 for weight in weights):
            self.dtype = torch.float64
        self._contract_counts()
        self._contract_loops()
        self._contract_scales()
        ends = {
            kind: [n for n, node in self.nodes.items() if type(node) is kind]
            for kind in (nir.Input, nir.Output)
        }
        for kind, found in ends.items():
            if len(found) != 1:
                raise UnreadableError(f"{len(found)} nodes {kind.__name__} {found[:4]}; a Network has one")
        (start,), (end,) = ends.values()
        row = self._row(start, end)
        names = _layer_names(row, self._labels(row))
        self.units[start] = np.ones(())
        for name in row:
            try:
                self.built[name] = self._build(name, self.nodes[name])
            except UnreadableError as error:
                self.refusals.append(f"{name}: {error}")
                self.units.setdefault(name, np.ones(()))
        if self.refusals:
            return None
        before = {name: earlier for earlier, name in zip([start, *row], [*row, end], strict=True)}
        called = {start: "input", **names}
        skips: dict[str, list[str]] = {}
        for edge in self.edges:
            if edge.source == before[edge.target]:
                continue
            if edge.target == end:
                raise UnreadableError(
                    f"{edge.source}: leads to the output beside {before[end]}; a Network has one end"
                )
            skips.setdefault(names[edge.target], []).append(called[edge.source])
        network = Network({names[name]: self.built[name] for name in row}, skips)
        network.to(self.dtype).eval()
        network.check_weights()
        return network

    # ---- the graph ----------------------------------------------------------------------------------------

    def _contract_counts(self) -> None:
        """Put one node in the place of each ATMN's, after a look at whether they are what its tag says."""
        tagged = [n for n, node in self.nodes.items() if node.metadata.get(TAG) == "ATMN"]
        for name in tagged:
            try:
                neuron, form = nir_atmn.rebuild(name, self.nodes[name])
            except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
                raise UnreadableError(
                    f"{name}: tagged as an ATMN with settings that can't be ({_line(error)})"
                ) from error
            inside = set(form.nodes)
            parts = set(nir_atmn.parts_of(name, self.nodes))
            kept = [(e.source, e.target) for e in self.edges if {e.source, e.target} <= inside]
            leaving = [e for e in self.edges if e.source in inside - {name} and e.target not in inside]
            into = [e for e in self.edges if e.target in inside and e.source not in inside]
            sources = list(dict.fromkeys(e.source for e in into))
            whole = (
                parts == inside
                and all(nir_atmn.equal(node, self.nodes[each]) for each, node in form.nodes.items())
                and sorted(kept) == sorted(form.edges)
                and not leaving
                and {(e.source, e.target) for e in into} == {(s, t) for s in sources for t in form.entries}
            )
            if not whole:
                raise UnreadableError(f"{name}: tagged as an ATMN, but its nodes or edges are not an ATMN's")
            for each in inside - {name}:
                del self.nodes[each]
            self.edges = [e for e in self.edges if e.source not in inside - {name} and e.target not in inside]
            self.edges += [Edge(source, name) for source in sources]
            self.built[name] = neuron

    def _contract_loops(self) -> None:
        """Take out each Linear between a neuron's output and the same neuron's input."""
        import nir

        neurons = (nir.LIF, nir.IF, nir.CubaLIF, nir.LI, nir.I, nir.Threshold)
        sources: dict[str, list[str]] = {name: [] for name in self.nodes}
        targets: dict[str, list[str]] = {name: [] for name in self.nodes}
        for edge in self.edges:
            sources[edge.target].append(edge.source)
            targets[edge.source].append(edge.target)
        for name, node in list(self.nodes.items()):
            if type(node) not in (nir.Linear, nir.Affine) or len(sources[name]) != 1:
                continue
            (neuron,) = sources[name]
            if targets[name] != [neuron] or type(self.nodes[neuron]) not in neurons:
                continue
            if neuron in self.loops:
                raise UnreadableError(
                    f"{name}: a second way back to {neuron} beside {self.loops[neuron][0]}; add their weights"
                )
            self.loops[neuron] = name, node
            del self.nodes[name]
            self.edges = [edge for edge in self.edges if name not in (edge.source, edge.target)]

    def _contract_scales(self) -> None:
        """Scale nodes become a factor on each edge through them."""
        import nir

        for name in [n for n, node in self.nodes.items() if type(node) is nir.Scale and n not in self.built]:
            scale = _numbers(self.nodes[name].scale)
            into = [e for e in self.edges if e.target == name]
            out = [e for e in self.edges if e.source == name]
            if any(e.source == name for e in into):
                raise UnreadableError(f"{name}: leads back to itself; a Network goes forward")
            pairs = {(a.source, b.target) for a in into for b in out}
            others = {(e.source, e.target) for e in self.edges if name not in (e.source, e.target)}
            if pairs & others:
                raise UnreadableError(
                    f"{name}: beside an edge that it would double; write one weight for both"
                )
            self.edges = [e for e in self.edges if name not in (e.source, e.target)]
            self.edges += [Edge(a.source, b.target, a.scale * scale * b.scale) for a in into for b in out]
            del self.nodes[name]

    def _row(self, start: str, end: str) -> list[str]:
        """The nodes between input and output in the one order in which each follows the one before."""
        targets: dict[str, list[str]] = {name: [] for name in self.nodes}
        waiting = dict.fromkeys(self.nodes, 0)
        for edge in self.edges:
            targets[edge.source].append(edge.target)
            waiting[edge.target] += 1
        ready = sorted(name for name, left in waiting.items() if not left)
        order: list[str] = []
        while ready:
            name = ready.pop()
            order.append(name)
            for target in targets[name]:
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
        if len(order) < len(self.nodes):
            loop = sorted(set(self.nodes) - set(order))
            raise UnreadableError(
                f"{', '.join(loop[:4])}: a loop, or behind one; a Network goes forward, but for one Linear "
                "from a neuron back to it"
            )
        linked = {(edge.source, edge.target) for edge in self.edges}
        if order[0] != start or order[-1] != end or len(order) < 3:
            raise UnreadableError(
                f"{order[-1] if order[0] == start else order[0]}: no way from input to output through it"
            )
        for earlier, later in pairwise(order):
            if (earlier, later) not in linked:
                raise UnreadableError(
                    f"{later}: stands beside {earlier}, not behind it; a Network is one row, with skips"
                )
        return order[1:-1]

    def _labels(self, row: Sequence[str]) -> dict[str, str]:
        """What nodes are called: x.lif with its way back x.w_rec, and nothing else of x, is x."""
        labels = {name: name for name in row}
        for name, (back, _) in self.loops.items():
            stem = name.rpartition(".")[0]
            alone = not any(each == stem or each.startswith(f"{stem}.") for each in row if each != name)
            if stem and alone and back.rpartition(".")[0] == stem:
                labels[name] = stem
        return labels

    # ---- units --------------------------------------------------------------------------------------------

    def _unit(self, name: str) -> Reals:
        """The unit of the signals that meet at a node: one number, or one an element."""
        into = [edge for edge in self.edges if edge.target == name]
        found = [np.asarray(self.units[edge.source] / edge.scale) for edge in into]
        if all(_alike(unit, found[0]) for unit in found):
            return _smallest(found[0])
        # Linear maps whose output goes nowhere else can be counted in the unit of the others.
        fixed = [unit for unit, edge in zip(found, into, strict=True) if not self._is_free(edge)]
        if fixed and all(_alike(unit, fixed[0]) for unit in fixed) and _smallest(fixed[0]).ndim == 0:
            common = _smallest(fixed[0])
            for unit, edge in zip(found, into, strict=True):
                if self._is_free(edge):
                    self._rescale(edge.source, common / unit)
            return common
        senders = ", ".join(edge.source for edge in into)
        raise UnreadableError(
            f"adds signals of {senders}, whose spikes are worth different amounts in marsnn; give those "
            "neurons one threshold, or read with fires_at='>='"
        )

    def _is_free(self, edge: Edge) -> bool:
        linear = isinstance(self.built.get(edge.source), nn.Linear | nn.Conv1d | nn.Conv2d)
        return linear and sum(each.source == edge.source for each in self.edges) == 1

    def _rescale(self, name: str, by: Reals) -> None:
        layer = self.built[name]
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
        scale = torch.as_tensor(by, dtype=self.dtype)
        with torch.no_grad():
            layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)) if scale.ndim else scale)
            if layer.bias is not None:
                layer.bias.mul_(scale)
        self.units[name] = self.units[name] * by

    # ---- nodes --------------------------------------------------------------------------------------------

    def _build(self, name: str, node: Any) -> nn.Module:
        import nir

        unit = self._unit(name)
        self.units[name] = np.ones(())
        if name in self.built:
            if not _alike(unit, np.ones(())):
                raise UnreadableError("an ATMN behind neurons whose threshold is not 1; put a Linear between")
            return self.built[name]
        builders: dict[type, Callable[[str, Any, Reals], nn.Module]] = {
            nir.Linear: self._linear,
            nir.Affine: self._linear,
            nir.Conv1d: self._conv,
            nir.Conv2d: self._conv,
            nir.AvgPool2d: self._pool,
            nir.SumPool2d: self._sum_pool,
            nir.Flatten: self._flatten,
            nir.LIF: self._lif,
            nir.IF: self._lif,
            nir.CubaLIF: self._lif,
            nir.LI: self._li,
            nir.I: self._li,
            nir.Threshold: self._threshold,
        }
        if type(node) not in builders:
            known = ", ".join(kind.__name__ for kind in builders)
            raise UnreadableError(
                f"{type(node).__name__} has no layer in marsnn; known are {known} and Scale"
            )
        layer = builders[type(node)](name, node, unit)
        return self._recurrent(name, layer, unit) if name in self.loops else layer

    def _recurrent(self, name: str, neuron: Any, unit: Reals) -> nn.Module:
        """What comes back adds to what arrives, so it is in that unit; it was sent in the neuron's own."""
        _, node = self.loops[name]
        layer = Recurrent(neuron, bias=hasattr(node, "bias")).to(self.dtype)
        weight = _numbers(node.weight) / self.units[name].reshape(-1) * unit.reshape(-1, 1)
        bias = _numbers(node.bias) * unit.reshape(-1) if hasattr(node, "bias") else None
        self._filled(layer.recurrent, weight, bias)
        return layer

    def _linear(self, name: str, node: Any, unit: Reals) -> nn.Module:
        weight = _numbers(node.weight)
        if weight.ndim != 2:
            raise UnreadableError(f"a weight {list(weight.shape)}; a Linear takes [out, in]")
        if unit.ndim and unit.reshape(-1).shape != weight.shape[1:]:
            raise UnreadableError(f"takes {weight.shape[1]} inputs from {unit.size} neurons")
        bias = _numbers(node.bias) if hasattr(node, "bias") else None
        if bias is not None and bias.shape != weight.shape[:1]:
            raise UnreadableError(f"a bias {list(bias.shape)} to a weight {list(weight.shape)}")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=self.dtype)
        return self._filled(layer, weight / (unit.reshape(-1) if unit.ndim else unit), bias)

    def _conv(self, name: str, node: Any, unit: Reals) -> nn.Module:
        weight, bias = _numbers(node.weight), _numbers(node.bias)
        axes = weight.ndim - 2
        if axes not in (1, 2) or bias.shape != weight.shape[:1]:
            raise UnreadableError(f"a weight {list(weight.shape)} with a bias {list(bias.shape)}")
        groups = _whole(node.groups, 1, least=1)[0]
        by_channel = _channels(unit)
        if by_channel.ndim and (groups > 1 or len(by_channel) != weight.shape[1]):
            raise UnreadableError(
                "thresholds differ between the channels before it in a way that its weights can't take"
            )
        padding: Any = node.padding
        if isinstance(padding, bytes):
            padding = padding.decode()
        if not isinstance(padding, str):
            padding = _whole(padding, axes)
        elif padding not in ("same", "valid"):
            raise UnreadableError(f"padding {padding!r}")
        if groups < 1 or weight.shape[0] % groups:
            raise UnreadableError(f"groups = {groups} for {weight.shape[0]} channels")
        kind = nn.Conv1d if axes == 1 else nn.Conv2d
        wants_bias = bool(node.metadata.get("bias", True)) or bool(bias.any())
        layer = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            weight.shape[2:],  # type: ignore[arg-type]
            stride=_whole(node.stride, axes, least=1),  # type: ignore[arg-type]
            padding=padding,
            dilation=_whole(node.dilation, axes, least=1),  # type: ignore[arg-type]
            groups=groups,
            bias=wants_bias,
            dtype=self.dtype,
        )
        scaled = weight / (by_channel.reshape(-1, *[1] * axes) if by_channel.ndim else by_channel)
        return self._filled(layer, scaled, bias if wants_bias else None)

    def _pool(self, name: str, node: Any, unit: Reals) -> nn.Module:
        sides = (_whole(node.kernel_size, 2, 1), _whole(node.stride, 2, 1), _whole(node.padding, 2))
        self.units[name] = self._pooled(node, unit)
        return nn.AvgPool2d(*sides)  # type: ignore[arg-type]

    def _sum_pool(self, name: str, node: Any, unit: Reals) -> nn.Module:
        """A convolution of ones for each channel: it survives `save_network`, a divisor doesn't."""
        shape = _shape(node.input_type, "input")
        if len(shape) != 3:
            raise UnreadableError(
                "how many channels it has is not in the file: give its Input a shape [C, H, W]"
            )
        channels = shape[0]
        kernel = _whole(node.kernel_size, 2, 1)
        layer = nn.Conv2d(
            channels, channels, kernel, _whole(node.stride, 2, 1), _whole(node.padding, 2),  # type: ignore[arg-type]
            groups=channels, bias=False, dtype=self.dtype,
        )  # fmt: skip
        self.units[name] = self._pooled(node, unit)
        return self._filled(layer, np.ones((channels, 1, *kernel)), None)

    def _pooled(self, node: Any, unit: Reals) -> Reals:
        if not unit.ndim:
            return unit
        by_channel, out = _channels(unit), _shape(node.output_type, "output")
        if len(out) != 3:
            raise UnreadableError(
                "thresholds differ between the neurons before it, and its shape is not in the file"
            )
        return np.broadcast_to(by_channel.reshape(-1, 1, 1), out)

    def _flatten(self, name: str, node: Any, unit: Reals) -> nn.Module:
        start, end = (_whole(d, 1, least=None)[0] for d in (node.start_dim, node.end_dim))
        if unit.ndim:
            shape = _shape(node.output_type, "output")
            if not shape:
                raise UnreadableError(
                    "thresholds differ between the neurons before it, and its shape is not in the file"
                )
            unit = unit.reshape(shape)
        self.units[name] = unit
        return nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end)

    def _lif(self, name: str, node: Any, unit: Reals) -> nn.Module:
        import nir

        own = self.conventions
        threshold, rest = _numbers(node.v_threshold), _numbers(node.v_reset)
        settings: dict[str, Reals] = {}
        if type(node) is nir.IF:
            settings["beta"] = np.ones(threshold.shape)
            gains = own.dt * _numbers(node.r)
        else:
            tau = _numbers(node.tau_mem if type(node) is nir.CubaLIF else node.tau)
            settings["beta"] = self._decay("tau", tau)
            gains = gain(tau, _numbers(node.r), own.dt)
            leak = _numbers(node.v_leak)
            if not np.allclose(leak, rest, rtol=NEAR_ONE, atol=1e-12):
                raise UnreadableError(
                    "rests at v_leak and resets to another value; marsnn's LIF resets to its rest"
                )
        if type(node) is nir.CubaLIF:
            tau = _numbers(node.tau_syn)
            settings["alpha"] = self._decay("tau_syn", tau)
            gains = gains * gain(tau, _numbers(node.w_in), own.dt)
        gains = np.where(np.abs(gains - 1) <= NEAR_ONE, 1.0, gains)
        if not bool((gains / unit > 0).all()):
            raise UnreadableError("a resistance, an input weight or a Scale that is not above 0")
        kind = np.float32 if self.dtype == torch.float32 else np.float64
        above = from_file(threshold.astype(kind), own.fires_at).astype(np.float64) - rest
        level: Reals = (above * unit / gains).astype(kind)
        reset = node.metadata.get("reset", "zero") if TAG in node.metadata else "zero"
        if reset not in ("zero", "subtract"):
            raise UnreadableError(f"tagged with a reset {reset!r}")
        if not bool((level > 0).all()):
            raise UnreadableError("a threshold that is not above its rest")
        self.units[name] = _smallest(level.astype(np.float64))
        cls = CubaLIF if type(node) is nir.CubaLIF else LIF
        return self._neuron(name, cls, {**settings, "threshold": level}, node, reset=reset)

    def _li(self, name: str, node: Any, unit: Reals) -> nn.Module:
        import nir

        r = _numbers(node.r)
        if type(node) is nir.I:
            beta: Reals = np.ones(r.shape)
            gains = self.conventions.dt * r
        else:
            tau = _numbers(node.tau)
            beta, gains = self._decay("tau", tau), gain(tau, r, self.conventions.dt)
            if _numbers(node.v_leak).any():
                raise UnreadableError("rests at a v_leak that is not 0; add it to the bias that follows")
        self.units[name] = _smallest(unit / np.where(np.abs(gains - 1) <= NEAR_ONE, 1.0, gains))
        return self._neuron(name, LeakyIntegrator, {"beta": beta}, node)

    def _threshold(self, name: str, node: Any, unit: Reals) -> nn.Module:
        """A neuron that forgets at once: h = I."""
        kind = np.float32 if self.dtype == torch.float32 else np.float64
        level = from_file(_numbers(node.threshold).astype(kind), self.conventions.fires_at)
        level = (level.astype(np.float64) * unit).astype(kind)
        if not bool((level > 0).all()):
            raise UnreadableError("a threshold that is not above 0")
        self.units[name] = _smallest(level.astype(np.float64))
        settings = {"beta": np.zeros(level.shape), "threshold": level}
        return self._neuron(name, LIF, settings, node, reset="zero")

    def _decay(self, name: str, tau: Reals) -> Reals:
        if not bool((tau >= self.conventions.dt * (1 - NEAR_ONE)).all()):
            raise UnreadableError(
                f"{name} = {tau.min():g} s is shorter than a step of dt = {self.conventions.dt:g} s; give "
                "the dt that the file was written with"
            )
        return np.maximum(decay(tau, self.conventions.dt), 0.0)

    def _neuron(
        self, name: str, cls: type[Neuron], settings: dict[str, Reals], node: Any, **more: Any
    ) -> Neuron:
        """A neuron with settings as the node has them: one number, or one for each feature."""
        own = self.conventions
        shapes = {value.shape for value in settings.values() if value.size > 1}
        shape = max(shapes, key=len, default=())
        if name in self.loops:  # its features are known, also where one number is for all
            shape = self._size_of_loop(name, shape)
        axis = -1 if len(shape) <= 1 else -len(shape)
        tagged = node.metadata.get("feature_dim")
        if tagged is not None and -len(shape) <= int(tagged) < 0:
            axis = int(tagged)
        features = shape[axis] if shape else None
        tensors = {}
        for key, value in settings.items():
            wide = np.moveaxis(np.broadcast_to(value, shape), axis, 0) if shape else value.reshape(1)
            flat = wide.reshape(wide.shape[0], -1)
            if not bool((flat == flat[:, :1]).all()):
                raise UnreadableError(f"{key} differs within a channel; marsnn has one for each")
            tensors[key] = torch.as_tensor(flat[:, 0].copy(), dtype=self.dtype)
            if features is None:
                tensors[key] = tensors[key][0]
        settings_of: dict[str, Any] = {**tensors, **more}
        return cls(features, own.steps, carry=own.carry, feature_dim=axis, **settings_of)

    def _size_of_loop(self, name: str, shape: tuple[int, ...]) -> tuple[int]:
        back, node = self.loops[name]
        weight, bias = np.shape(node.weight), np.shape(getattr(node, "bias", 0.0))
        size = weight[:1]
        if weight != size * 2 or bias not in ((), size) or shape not in ((), size):
            raise UnreadableError(
                f"its way back {back} has a weight {list(weight)} and a bias {list(bias)} for neurons "
                f"{list(shape)}; N of them take [N, N] and [N]"
            )
        return size  # type: ignore[return-value]

    def _filled(self, layer: Any, weight: Reals, bias: Reals | None) -> nn.Module:
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(weight))
            if bias is not None:
                layer.bias.copy_(torch.as_tensor(bias))
        return layer  # type: ignore[no-any-return]


# ---- the graph ---------------------------------------------------------------------------------------------


def _flat(graph: nir.NIRGraph) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges with sub-graphs opened: what is lif within x is x.lif without. No edge comes twice, or
    each level of a hostile file would multiply them, and no edge between sub-graphs becomes too many."""
    import nir

    nodes: dict[str, Any] = {}
    entries: dict[str, list[str]] = {}
    exits: dict[str, list[str]] = {}
    edges: list[tuple[str, str]] = []
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            node.metadata = node.metadata if isinstance(node.metadata, dict) else {}
            nodes[name] = node
            continue
        inside, links = _flat(node)
        ends = {
            kind: [each for each, part in inside.items() if type(part) is kind]
            for kind in (nir.Input, nir.Output)
        }
        if any(len(found) != 1 for found in ends.values()):
            raise UnreadableError(f"{name}: a sub-graph without one Input and one Output of its own")
        (start,), (end,) = ends.values()
        if (start, end) in links:
            raise UnreadableError(
                f"{name}: a sub-graph whose input is an output; write that edge outside of it"
            )
        entries[name] = [f"{name}.{b}" for a, b in links if a == start]
        exits[name] = [f"{name}.{a}" for a, b in links if b == end]
        edges += [(f"{name}.{a}", f"{name}.{b}") for a, b in links if a != start and b != end]
        for each, part in inside.items():
            if each not in (start, end):
                if f"{name}.{each}" in graph.nodes:
                    raise UnreadableError(f"{name}.{each}: a node, and one in the sub-graph {name}")
                nodes[f"{name}.{each}"] = part
    for source, target in dict.fromkeys(graph.edges):
        leaving, entering = exits.get(source, [source]), entries.get(target, [target])
        if len(leaving) * len(entering) > LARGEST_EDGES - len(edges):
            raise UnreadableError(f"{source}: with its edges to {target} there are more than {LARGEST_EDGES}")
        edges += [(a, b) for a in leaving for b in entering]
    return nodes, list(dict.fromkeys(edges))


# ---- numbers -----------------------------------------------------------------------------------------------


def _numbers(value: Any) -> Reals:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or not array.size:
        raise UnreadableError(f"{array.dtype} {list(array.shape)} where numbers are expected")
    real = array.astype(np.float64)
    if not np.isfinite(real).all():
        raise UnreadableError("holds NaN or infinity")
    return real


def _whole(value: Any, axes: int, least: int | None = 0) -> tuple[int, ...]:
    """Whole numbers, one an axis; one for all is repeated."""
    real = _numbers(value).reshape(-1)
    if (
        len(real) not in (1, axes)
        or (real != np.round(real)).any()
        or (least is not None and (real < least).any())
    ):
        raise UnreadableError(f"{real[:4].tolist()} where {axes} whole numbers are expected")
    return tuple(int(v) for v in (real if len(real) == axes else np.repeat(real, axes)))


def _shape(types: Any, key: str) -> tuple[int, ...]:
    """A shape that the file gives or that follows from it; () where it is not known."""
    value = (types or {}).get(key)
    return () if value is None else tuple(int(v) for v in np.asarray(value).reshape(-1))


def _alike(first: Reals, second: Reals) -> bool:
    if first.ndim and second.ndim and first.shape != second.shape:
        return False
    return bool(np.all(first == second))


def _smallest(unit: Reals) -> Reals:
    """One number where all are equal."""
    flat = np.asarray(unit).reshape(-1)
    return flat[0].reshape(()) if bool((flat == flat[0]).all()) else np.asarray(unit)


def _channels(unit: Reals) -> Reals:
    if unit.ndim < 2:
        return unit
    flat = unit.reshape(len(unit), -1)
    if not bool((flat == flat[:, :1]).all()):
        raise UnreadableError("thresholds differ within a channel before it")
    return flat[:, 0]


def _layer_names(row: Sequence[str], labels: dict[str, str]) -> dict[str, str]:
    """Names that a Network takes: other signs become "_", doubles are numbered."""
    names: dict[str, str] = {}
    taken = {"input"}
    for node in row:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", labels[node])[:80] or "layer"
        if plain in taken or hasattr(nn.ModuleDict(), plain):
            plain = next(f"{plain}_{i}" for i in range(2, len(row) + 3) if f"{plain}_{i}" not in taken)
        taken.add(plain)
        names[node] = plain
    return names


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
