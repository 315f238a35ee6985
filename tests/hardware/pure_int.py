"""The third voice: the chip's schedule in plain Python integers, one neuron and one step at a time.

Shares nothing with marsnn.hardware.integer (which works stage by stage, in arrays) nor with the runtime for
Lava (which is driven by Lava). Time runs globally; a spike sent at step n arrives at step n + 1, or `wait`
steps later where a slower sender ends at the same stage.
"""

from __future__ import annotations

from itertools import product
from typing import Any

LIMIT = 8388607
TRAINS = {"atmn", "lif"}


def run(graph: Any, inputs: Any) -> tuple[dict[str, list], dict[str, int]]:
    """Spikes [W][T][N], or values [W][N], of each stage, and its saturations."""
    T, W = graph.steps, len(inputs)
    starts, trains = {"input": 1}, {"input": False}
    stages = []
    for stage in graph.stages:
        trains[stage.name] = stage.kind in TRAINS
        arrives = []
        for synapse in stage.synapses:
            if synapse.source == stage.name:
                continue
            # The first spike that the stage can't open without: of a train that is summed, the last one.
            last = T - 1 if trains[synapse.source] and stage.kind != "lif" else 0
            arrives.append(starts[synapse.source] + last + 1)
        starts[stage.name] = max(arrives)
        rest = [max(arrives) - each for each in arrives]
        waits = [0 if synapse.source == stage.name else rest.pop(0) for synapse in stage.synapses]
        stages.append(KINDS[stage.kind](stage, graph, W, max(arrives), waits))
    # sender -> step -> what was sent, as pairs (neuron, number) without the zeros
    history: dict[str, dict[int, list]] = {name: {} for name in starts}
    for w, row in enumerate(inputs):
        history["input"][1 + w * T] = pairs([int(x) for x in row])
    for n in range(1, max(starts.values()) + W * T + 1):
        for stage in stages:
            sent = stage.step(n, history)
            if sent is not None:
                history[stage.name][n] = pairs(sent)
    return {stage.name: stage.seen for stage in stages}, {stage.name: stage.saturated for stage in stages}


def pairs(numbers: list[int]) -> list[tuple[int, int]]:
    return [(i, x) for i, x in enumerate(numbers) if x]


def over(value: int, bits: int) -> int:
    """Over a power of two, what is left of the point dropped on both sides of zero."""
    return value // 2**bits if value >= 0 else -(-value // 2**bits)


def quotient(value: int, by: int) -> int:
    return value // by if value >= 0 else -(-value // by)


def square_root(x: int) -> int:
    """Its whole part, bit by bit from the top."""
    found = 0
    for bit in range(40, -1, -1):
        if (found + 2**bit) ** 2 <= x:
            found += 2**bit
    return found


def entry(table: list[int], place: int) -> int:
    middle = (len(table) - 1) // 2
    return table[0] if place < -middle else table[-1] if place > middle else table[middle + place]


class Wire:
    """One synapse: who reaches whom by how much, and its accumulator."""

    def __init__(self, synapse: Any, size: int, wait: int) -> None:
        self.source, self.port, self.arrival, self.wait = synapse.source, synapse.port, synapse.arrival, wait
        self.form, self.shift = synapse.form, 2**synapse.shift
        self.weight = synapse.weight.tolist()
        self.right = None if synapse.right is None else synapse.right.tolist()
        self.size = size
        self.total = [0] * size
        self.fans: dict[int, list] = {}  # sender -> [(receiver, weight)]
        if self.form == "dense":
            for j, row in enumerate(self.weight):
                for i, w in pairs(row):
                    self.fans.setdefault(i, []).append((j, w))
        elif self.form == "conv":
            self.spread(synapse.conv)

    def spread(self, conv: Any) -> None:
        """Every weight of the kernel at every place where it lies inside the image."""
        image, out = conv.source[1:], conv.target[1:]
        inner, per_out = conv.source[0] // conv.groups, conv.target[0] // conv.groups
        for c in range(conv.target[0]):
            first = c // per_out * inner
            for place in product(*map(range, out)):
                for tap in product(*map(range, shape_of(self.weight)[2:])):
                    at = [
                        o * s - p + k * d
                        for o, s, p, k, d in zip(
                            place, conv.stride, conv.padding, tap, conv.dilation, strict=True
                        )
                    ]
                    if any(x < 0 or x >= n for x, n in zip(at, image, strict=True)):
                        continue
                    receiver = flat([c, *place], conv.target)
                    for channel in range(inner):
                        w = self.weight[c][channel]
                        for k in tap:
                            w = w[k]
                        if w:
                            sender = flat([first + channel, *at], conv.source)
                            self.fans.setdefault(sender, []).append((receiver, w))

    def reached(self, sent: list[tuple[int, int]]) -> list[int]:
        a = [0] * self.size
        for i, x in sent:
            if self.right is not None:
                a[i] = over(x * self.weight[i], self.right[i])
            else:
                for j, w in self.fans.get(i, ()):
                    a[j] += w * x
        return a if self.right is not None else [each * self.shift for each in a]


def shape_of(nested: list) -> list[int]:
    return [len(nested), *shape_of(nested[0])] if isinstance(nested, list) else []


def flat(place: list[int], shape: tuple[int, ...]) -> int:
    index = 0
    for i, n in zip(place, shape, strict=True):
        index = index * n + i
    return index


class Stage:
    def __init__(self, stage: Any, graph: Any, W: int, opens: int, waits: list[int]) -> None:
        self.name, self.kind, self.opens = stage.name, stage.kind, opens
        self.T, self.W, self.per_sample = graph.steps, W, graph.tokens_per_sample
        self.bias = {port: bias.tolist() for port, bias in stage.bias.items()}
        self.of = {name: array.tolist() for name, array in stage.arrays.items()}
        self.zero_reset, self.lasting = stage.reset == "zero", stage.carry == "sequence"
        self.N = 1
        for n in stage.shape:
            self.N *= n
        self.wires = [
            Wire(synapse, len(self.bias[synapse.port]), wait)
            for synapse, wait in zip(stage.synapses, waits, strict=True)
        ]
        self.seen: list = []
        self.saturated = 0
        self.u = [0] * self.N
        self.begin()

    def begin(self) -> None:
        """A sample begins: what is remembered is gone."""

    def clip(self, value: int, limit: int = LIMIT) -> int:
        if -limit <= value <= limit:
            return value
        self.saturated += 1
        return limit if value > 0 else -limit

    def step(self, n: int, history: dict[str, dict[int, list]]) -> list[int] | None:
        """What is sent at step n; None is silence."""
        w, t = (n - self.opens) // self.T, (n - self.opens) % self.T
        arrived = {port: list(bias) for port, bias in self.bias.items()}
        for wire in self.wires:
            heard = history[wire.source].get(n - 1 - wire.wait, [])
            if wire.source == self.name and t == 0 and not (self.lasting and w % self.per_sample):
                heard = []  # sent before the state was cleared
            a = wire.reached(heard)
            taken = self.take(wire, a, t)
            into = arrived[wire.port]
            for j, x in enumerate(taken):
                into[j] += x
        if not 0 <= w < self.W:
            return None
        if t == 0 and w % self.per_sample == 0:
            self.begin()
        return self.live(w, t, arrived)

    def take(self, wire: Wire, a: list[int], t: int) -> list[int]:
        """The token's sum so far, one's own accumulator for each synapse; it is emptied when it is taken."""
        for j in range(wire.size):
            if wire.arrival == "horner":
                wire.total[j] = self.clip(2 * wire.total[j] + a[j])
            elif wire.arrival == "power":
                wire.total[j] = self.clip(wire.total[j] + a[j] * 2 ** ((t + self.T - 1) % self.T))
            else:
                wire.total[j] = self.clip(wire.total[j] + a[j])
        taken = wire.total
        if t == 0:
            wire.total = [0] * wire.size
        return taken

    def live(self, w: int, t: int, arrived: dict[str, list[int]]) -> list[int] | None:
        if t == 0:
            sent = self.open({port: [self.clip(x) for x in each] for port, each in arrived.items()})
            self.seen.append(sent)
            return sent
        return None

    def open(self, sums: dict[str, list[int]]) -> list[int]:
        """What a stage of one port sends for its sums."""
        return sums["in"]


class ATMN(Stage):
    def live(self, w: int, t: int, arrived: dict[str, list[int]]) -> list[int]:
        sent = []
        for j in range(self.N):
            h = self.clip(arrived["in"][j] if t == 0 else over(self.u[j] * self.of["decay"], 12))
            s = 1 if h >= self.of["fire"][j] else -1 if -h >= self.of["fire"][j] else 0
            self.u[j] = h - s * self.of["amplitude"][j]
            sent.append(s)
        if t == 0:
            self.seen.append([])
        self.seen[-1].append(sent)
        return sent


class Count(Stage):
    def open(self, sums: dict[str, list[int]]) -> list[int]:
        sent = []
        for levels, h in zip(self.of["levels"], sums["in"], strict=True):
            worth = sum(w for level, w in zip(levels, self.of["worth"], strict=True) if abs(h) >= level)
            sent.append(worth if h > 0 else -worth)
        return sent


class LIF(Stage):
    def take(self, wire: Wire, a: list[int], t: int) -> list[int]:
        if wire.arrival == "held":
            if t == 0:
                wire.total = a
            return wire.total
        times = {"stream": 1, "stream_down": 2 ** (self.T - 1 - t), "stream_up": 2**t}[wire.arrival]
        return [x * times for x in a]

    def live(self, w: int, t: int, arrived: dict[str, list[int]]) -> list[int]:
        if t == 0:
            self.seen.append([])
            if not self.lasting or w % self.per_sample == 0:
                self.u, self.i, self.raised = [0] * self.N, [0] * self.N, [0] * self.N
        sent = [self.neuron(j, arrived["in"][j]) for j in range(self.N)]
        self.seen[-1].append(sent)
        return sent

    def neuron(self, j: int, driven: int) -> int:
        of = self.of
        self.i[j] = self.clip(over(self.i[j] * of["current_decay"][j], 12) + driven)
        h = self.clip(over(self.u[j] * of["decay"][j], 12) + self.i[j])
        level, s = of["fire"][j] + self.raised[j], 0
        while s < of["most"] and h >= level + s * of["amplitude"][j]:
            s += 1
        if of["signed"] and h < 0:
            while -s < of["most"] and -h >= level - s * of["amplitude"][j]:
                s -= 1
        self.u[j] = 0 if s and self.zero_reset else h - s * of["amplitude"][j]
        fallen = over(self.raised[j] * of["adaptation_decay"][j], 12)
        self.raised[j] = self.clip(fallen + abs(s) * of["adaptation"][j])
        return s


class Gate(Stage):
    def open(self, sums: dict[str, list[int]]) -> list[int]:
        of, sent = self.of, []
        for j in range(self.N):
            g, u = sums["argument"][j], sums["factor"][j]
            share = entry(of["table"], over(g * of["multiplier"][j], of["argument_shift"][j]))
            y = self.clip(over(g * share * u, of["product_shift"][j]))
            sent.append(y if abs(y) >= of["level"][j] else 0)
        return sent


class Norm(Stage):
    """The mean square rounds up, so that no quotient is larger than the root of N."""

    def open(self, sums: dict[str, list[int]]) -> list[int]:
        of, x = self.of, sums["in"]
        if of["center"]:
            middle = quotient(sum(x), self.N)
            x = [self.clip(each - middle) for each in x]
        power = sum(each * each for each in x)
        mean = power // self.N + (power % self.N > 0)
        size = square_root(65536 * (mean + of["epsilon"])) or 1
        return [
            self.clip(sign * quotient(each * 4194304, size) + offset)
            for each, sign, offset in zip(x, of["sign"], of["offset"], strict=True)
        ]


class S4D(Stage):
    def begin(self) -> None:
        self.modes = [[(0, 0) for _ in row] for row in self.of["real"]]

    def open(self, sums: dict[str, list[int]]) -> list[int]:
        of, sent = self.of, []
        for j, x in enumerate(sums["in"]):
            read = of["skip"][j] * x
            for m, (a, b) in enumerate(self.modes[j]):
                c, s = of["real"][j][m], of["imaginary"][j][m]
                enters = over(x * 2 ** of["enter_left"][j][m], of["enter_right"][j][m])
                a, b = self.clip(over(c * a - s * b, 20) + enters), self.clip(over(c * b + s * a, 20))
                self.modes[j][m] = (a, b)
                read += of["out_real"][j][m] * a - of["out_imaginary"][j][m] * b
            sent.append(self.clip(over(read, of["out_shift"][j])))
        return sent


class SSD(Stage):
    def begin(self) -> None:
        heads = len(self.of["multiplier"])
        self.rows = len(self.bias["keys"]) // self.of["groups"]
        self.columns = self.N // heads
        self.memory = [[[0] * self.columns for _ in range(self.rows)] for _ in range(heads)]
        self.before: list[list[int]] = []  # tokens of this sample, the oldest first

    def open(self, sums: dict[str, list[int]]) -> list[int]:
        of = self.of
        self.before.append([*sums["values"], *sums["keys"], *sums["queries"]])
        mixed = []
        for c, total in enumerate(of["tap_bias"]):
            for k in range(min(len(of["taps"]), len(self.before))):
                total += of["taps"][k][c] * self.before[-1 - k][c]
            mixed.append(self.clip(over(total, of["tap_shift"][c]), 32767))
        keys = mixed[self.N : self.N + len(self.bias["keys"])]
        queries = mixed[self.N + len(keys) :]
        sent = []
        heads = len(of["multiplier"])
        for head in range(heads):
            argument = over(sums["forgetting"][head] * of["multiplier"][head], of["argument_shift"][head])
            decay = entry(of["table"], argument)
            group = head // (heads // of["groups"])
            own = slice(group * self.rows, (group + 1) * self.rows)
            values = mixed[head * self.columns : (head + 1) * self.columns]
            sent += self.head(head, decay, keys[own], queries[own], values)
        return sent

    def head(self, head: int, decay: int, key: list[int], query: list[int], values: list[int]) -> list[int]:
        of, memory = self.of, self.memory[head]
        half, after = self.rows // 2, []
        for n in range(self.rows):
            row = []
            for p in range(self.columns):
                if of["cosine"]:
                    c, s = of["cosine"][n % half], of["sine"][n % half]
                    first, second = memory[n % half][p], memory[n % half + half][p]
                    kept = over((c * first - s * second if n < half else c * second + s * first) * decay, 35)
                else:
                    kept = over(memory[n][p] * decay, 15)
                enters = key[n] * values[p] * (32768 - decay if of["scaled"] else 1)
                row.append(
                    self.clip(kept + over(enters * 2 ** of["enter_left"][head], of["enter_right"][head]))
                )
            after.append(row)
        self.memory[head] = after
        sent = []
        for p in range(self.columns):
            read = of["skip"][head] * values[p] + sum(query[n] * after[n][p] for n in range(self.rows))
            sent.append(self.clip(over(read, of["out_shift"][head])))
        return sent


KINDS = {
    "atmn": ATMN, "count": Count, "lif": LIF, "sum": Stage, "gate": Gate, "norm": Norm, "s4d": S4D,
    "ssd": SSD,
}  # fmt: skip
