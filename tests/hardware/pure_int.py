"""The third voice: the chip's schedule in plain Python integers, one neuron and one step at a time.

Shares nothing with marsnn.hardware.integer (which works stage by stage, in arrays) nor with the runtime for
Lava (which is driven by Lava). Time runs globally; a spike sent at step n arrives at step n + 1.
"""

from __future__ import annotations

from typing import Any

LIMIT = 8388607


def run(graph: Any, inputs: Any) -> tuple[dict[str, list], dict[str, int]]:
    """Spikes [W][T][N], or sums or products [W][N], of each stage, and its saturations."""
    T, W = graph.steps, len(inputs)
    stages = [_Stage(stage, T, W, graph.tokens_per_sample) for stage in graph.stages]
    opened = 2
    for index, stage in enumerate(stages):
        if index:
            opened += 1 if stage.kind == "lif" or stages[index - 1].kind == "gate" else T
        stage.open_at = opened
    on_wire: list[list[int]] = [[] for _ in stages]  # what each stage will receive at the next step
    last = max(stage.open_at for stage in stages) + W * T
    for n in range(1, last + 1):
        arriving, on_wire = on_wire, [[] for _ in stages]
        source = [int(v) for v in inputs[(n - 1) // T]] if (n - 1) % T == 0 and (n - 1) // T < W else []
        on_wire[0] = source
        for index, stage in enumerate(stages):
            sent = stage.step(n, arriving[index])
            if index + 1 < len(stages):
                on_wire[index + 1] = sent
    return {stage.name: stage.seen for stage in stages}, {stage.name: stage.saturated for stage in stages}


class _Stage:
    def __init__(self, stage: Any, T: int, W: int, per_sample: int) -> None:
        self.name, self.kind, self.arrival = stage.name, stage.kind, stage.arrival
        self.weight = [[int(w) for w in row] for row in stage.weight]
        self.bias = [int(b) for b in stage.bias]
        self.fire = [int(f) for f in stage.fire]
        self.amplitude = [int(a) for a in stage.amplitude]
        self.numbers = stage.gate
        self.shift, self.decay = stage.shift, stage.decay
        self.zero_reset = stage.reset == "zero"
        self.lasting = per_sample if stage.carry == "sequence" else 1
        self.T, self.W, self.open_at = T, W, 0
        N = len(self.bias)
        self.acc, self.u, self.current = [0] * N, [0] * N, [0] * N
        self.seen: list = []
        self.saturated = 0

    def clip(self, value: int) -> int:
        if value > LIMIT:
            self.saturated += 1
            return LIMIT
        if value < -LIMIT:
            self.saturated += 1
            return -LIMIT
        return value

    def leak(self, value: int) -> int:
        magnitude = abs(value) * self.decay // 4096
        return magnitude if value >= 0 else -magnitude

    def step(self, n: int, spikes: list[int]) -> list[int]:
        token, t = (n - self.open_at) // self.T, (n - self.open_at) % self.T
        live = 0 <= token < self.W
        sent = []
        for j in range(len(self.bias)):
            if self.arrival == "direct":
                a = (spikes[j] if spikes else 0) * 2**self.shift
            else:
                a = sum(w * s for w, s in zip(self.weight[j], spikes, strict=False)) * 2**self.shift
            if self.kind == "lif":
                sent.append(self.lif(j, a, token, t) if live else 0)
                continue
            if self.arrival == "horner":
                self.acc[j] = self.clip(2 * self.acc[j] + a)
            elif self.arrival == "power":
                self.acc[j] = self.clip(self.acc[j] + a * 2 ** ((t + self.T - 1) % self.T))
            else:
                self.acc[j] = self.clip(self.acc[j] + a)
            if not live:
                sent.append(0)
            elif self.kind in ("readout", "gate"):
                sent.append(self.clip(self.acc[j] + self.bias[j]) if t == 0 else 0)
            else:
                sent.append(self.atmn(j, t))
            if t == 0:
                self.acc[j] = 0
        if self.kind == "gate":  # what was clipped above are its 2N sums
            N = len(sent) // 2
            sent = [self.multiplied(j, sent[j], sent[N + j]) if live and t == 0 else 0 for j in range(N)]
        if live:
            if self.kind in ("readout", "gate"):
                if t == 0:
                    self.seen.append(sent)
            elif t == 0:
                self.seen.append([sent])
            else:
                self.seen[-1].append(sent)
        return sent

    def multiplied(self, j: int, g: int, u: int) -> int:
        own = self.numbers
        table = [int(share) for share in own.table]
        middle = len(table) // 2
        place = shifted(g * int(own.multiplier[j]), int(own.argument_shift[j]))
        share = table[0] if place < -middle else table[-1] if place > middle else table[middle + place]
        y = self.clip(shifted(g * share * u, int(own.product_shift[j])))
        return y if abs(y) >= int(own.level[j]) else 0

    def atmn(self, j: int, t: int) -> int:
        h = self.clip(self.acc[j] + self.bias[j] if t == 0 else self.leak(self.u[j]))
        s = 1 if h >= self.fire[j] else -1 if -h >= self.fire[j] else 0
        self.u[j] = h - s * self.amplitude[j]
        return s

    def lif(self, j: int, a: int, token: int, t: int) -> int:
        if self.arrival == "held":
            if t == 0:
                self.current[j] = a
        elif self.arrival == "stream_down":
            self.current[j] = a * 2 ** (self.T - 1 - t)
        elif self.arrival == "stream_up":
            self.current[j] = a * 2**t
        else:
            self.current[j] = a
        if t == 0 and token % self.lasting == 0:
            self.u[j] = 0
        h = self.clip(self.leak(self.u[j]) + self.current[j] + self.bias[j])
        s = 1 if h >= self.fire[j] else 0
        self.u[j] = 0 if s and self.zero_reset else h - s * self.amplitude[j]
        return s


def shifted(value: int, bits: int) -> int:
    """Over a power of two, what is left of the point dropped on both sides of zero."""
    return value // 2**bits if value >= 0 else -(-value // 2**bits)
