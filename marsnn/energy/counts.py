"""What a count leaves behind: LayerCounts of one layer, OperationCounts of a whole run.

Vocabulary:

    MAC     a weight meets a graded value: multiply and accumulate
    AC      a weight meets a value of an operand that lies in {-1, 0, 1}: accumulate, added or subtracted
    graded  a weight meets a spike that carries an integer beyond {-1, 0, 1}; neither of the two, so apart
    mul     a multiplication outside synapses: elementwise, or within a neuron's update
    add     an addition outside synapses: elementwise, a bias, or within a neuron's update

A synaptic operation is effective when both operands are non-zero; the `dense_` fields skip nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from marsnn.files import json_text

FORMAT = "marsnn.counts/1"


@dataclass
class LayerCounts:
    """Operations of one layer over a whole run: all tokens, all samples, all micro-steps."""

    mac: int = 0
    """Effective multiply-accumulates of synapses."""
    ac: int = 0
    """Effective accumulates of synapses, for inputs in {-1, 0, 1}."""
    graded_ac: int = 0
    """Effective accumulates of integer spikes beyond {-1, 0, 1}, from neurons whose `levels` say so."""
    mul: int = 0
    """Multiplications outside synapses, those of neuron updates included."""
    add: int = 0
    """Additions outside synapses, biases and those of neuron updates included."""
    dense_mac: int = 0
    """As `mac`, zeros not skipped."""
    dense_ac: int = 0
    """As `ac`, zeros not skipped: every micro-step counts."""
    dense_graded_ac: int = 0
    """As `graded_ac`, zeros not skipped."""
    baseline_mac: int = 0
    """MACs of the dense twin: one per synapse and token in a Network, every dense operation elsewhere."""
    spikes: int = 0
    """Non-zero spikes of either sign."""
    neuron_updates_active: int = 0
    """Updates of one neuron in one micro-step that had a non-zero current, membrane or spike."""
    neuron_updates_idle: int = 0
    """The other updates."""
    bytes_moved: int = 0
    """Weights read, activations read and written, in the dtypes of the run; neuron state is left out."""

    @property
    def neuron_updates(self) -> int:
        """Active and idle updates together."""
        return self.neuron_updates_active + self.neuron_updates_idle

    def __add__(self, other: LayerCounts) -> LayerCounts:
        names = (field.name for field in fields(self))
        return LayerCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True)
class Hops:
    """What one layer sends over a chip's mesh by a placement, per token."""

    messages: float = 0.0
    """An event to one core; to two cores it is two."""
    east_west: float = 0.0
    """Tiles passed along rows."""
    north_south: float = 0.0
    """Tiles passed along columns."""

    def __add__(self, other: Hops) -> Hops:
        return Hops(
            self.messages + other.messages,
            self.east_west + other.east_west,
            self.north_south + other.north_south,
        )


@dataclass
class OperationCounts:
    """Operations of one run, layer by layer.

    Attributes:
        layers: layer name -> its counts, in the order in which layers ran.
        tokens: what "per token" divides by: L B of a Network, the batch size of another module.
        steps: T, the micro-steps of one token; 1 where there is no neuron.
        unattributed: operation -> elements of its result, for arithmetic that is none of mac, ac, mul, add
            (exp, div, sqrt, ...). It is listed here and priced nowhere.
    """

    layers: dict[str, LayerCounts] = field(default_factory=dict)
    tokens: int = 1
    steps: int = 1
    unattributed: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> LayerCounts:
        """The sum over the layers."""
        return sum(self.layers.values(), LayerCounts())

    def layer(self, name: str) -> LayerCounts:
        """The counts of that layer, made on first use."""
        return self.layers.setdefault(name, LayerCounts())

    def leave_out(self, operation: str, elements: int) -> None:
        """List arithmetic that no field holds."""
        if elements:
            self.unattributed[operation] = self.unattributed.get(operation, 0) + elements

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: format, tokens, steps, total, layers, unattributed."""
        return {
            "format": FORMAT,
            "tokens": self.tokens,
            "steps": self.steps,
            "total": asdict(self.total),
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
            "unattributed": dict(self.unattributed),
        }

    def to_json(self) -> str:
        """`to_dict` as readable JSON text."""
        return json_text(self.to_dict())
