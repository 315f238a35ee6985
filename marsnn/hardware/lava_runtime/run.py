"""Run a bundle in Lava and compare every spike with the golden ones.

    python runtime_lava/run.py                  inside the bundle's folder, or
    python runtime_lava/run.py BUNDLE           with Python 3.10, numpy and lava-nc; nothing else
    python runtime_lava/run.py --backend loihi2 with the vendor's run configuration, on a host of a Loihi 2

Exit 0: no mismatch. 1: mismatches, and where the first one is. 2: the bundle can't be read, or what the
backend needs isn't there. 3: a process of Lava's failed.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile

import numpy as np

sys.dont_write_bytecode = True  # a bundle stays as it was exported

TRAINS = ("atmn", "lif")  # kinds that send T spikes a token; the others send one integer
CURRENTS = ("lif",)  # kinds that take each step's current; the others take a token's sum


def clock(stages, steps):
    """When each sender first sends, and how long each synapse waits: see window.py."""
    opens, trains, delays = {"input": 1}, {}, {}
    for stage in stages:
        whole = stage["kind"] not in CURRENTS
        ready = {
            each["name"]: opens[each["source"]] + (steps if whole and trains.get(each["source"]) else 1)
            for each in stage["synapses"]
            if each["source"] != stage["name"]  # what comes back arrives one step after it was sent
        }
        opened = opens[stage["name"]] = max(ready.values())
        trains[stage["name"]] = stage["kind"] in TRAINS
        delays.update({each["name"]: opened - ready.get(each["name"], opened) for each in stage["synapses"]})
    return opens, delays


class Builder:
    """Processes and connections of one run."""

    def __init__(self, manifest, tensors, inputs, floating):
        from lava.proc.conv.process import Conv
        from lava.proc.dense.process import Dense
        from lava.utils.weightutils import SignMode

        self.Conv, self.Dense, self.mixed = Conv, Dense, SignMode.MIXED
        self.manifest, self.tensors, self.floating = manifest, tensors, floating
        self.steps, self.tokens = manifest["steps"], len(inputs)
        self.opens, self.delays = clock(manifest["stages"], self.steps)
        self.number = float if floating else np.int32
        self.counters = {}  # stage -> processes that count saturations

    def build(self, inputs):
        """The source; senders by name are then in `self.senders`."""
        from atmn import ATMN, Count
        from graded import Gate, Norm, Sum
        from lif import LIF
        from mixers import S4D, SSD
        from wires import Source

        kinds = {
            "atmn": ATMN, "count": Count, "lif": LIF, "sum": Sum, "gate": Gate, "norm": Norm, "s4d": S4D,
            "ssd": SSD,
        }  # fmt: skip
        data = inputs.reshape(self.tokens, -1).astype(self.number)
        source = Source(data=data, steps=self.steps)
        self.senders = {"input": source}
        for stage in self.manifest["stages"]:
            self.population(kinds[stage["kind"]], stage)
        return source

    def population(self, kind, stage):
        name = stage["name"]
        prefix = "stages/" + name + "/"
        own = {key[len(prefix) :]: array for key, array in self.tensors.items() if key.startswith(prefix)}
        wide = float if self.floating else np.int64
        bias = {key[5:]: array.astype(wide) for key, array in own.items() if key.startswith("bias/")}
        numbers = {key: array.astype(wide) for key, array in own.items() if not key.startswith("bias/")}
        lasting = stage["carry"] == "sequence" or stage["kind"] in ("s4d", "ssd")
        per_sample = self.manifest["tokens_per_sample"] if lasting else 1
        population = kind(
            neurons=int(np.prod(stage["shape"])),
            bias=bias,
            numbers=numbers,
            steps=self.steps,
            tokens=self.tokens,
            open_at=self.opens[name],
            per_sample=per_sample,
            zero_reset=stage["reset"] == "zero",
        )
        self.counters[name] = [population]
        self.senders[name] = population
        for synapse in stage["synapses"]:
            dropped = self.steps * per_sample if synapse["source"] == name else 0
            self.synapse(stage, synapse, getattr(population, kind.PORTS[synapse["port"]]), dropped)

    def synapse(self, stage, synapse, port, dropped):
        from wires import Accumulator, Delay, Each

        name = synapse["name"]
        sent = self.senders[synapse["source"]].s_out
        if self.delays[name]:
            line = Delay(size=int(np.prod(sent.shape)), delay=self.delays[name])
            sent.connect(line.s_in)
            sent = line.a_out
        weight = self.tensors["synapses/" + name + "/weight"]
        if synapse["form"] == "each":
            right = self.tensors["synapses/" + name + "/right"]
            each = Each(size=len(weight), factor=weight.astype(self.number), right=right.astype(np.int64))
            sent.connect(each.s_in)
            reached = each.a_out
        elif synapse["form"] == "conv":
            reached = self.convolution(weight, synapse["conv"], sent)
        else:
            reached = self.dense(weight, sent)
        accumulator = Accumulator(
            size=int(np.prod(reached.shape)), arrival=synapse["arrival"], shift=synapse["shift"],
            steps=self.steps, open_at=self.opens[stage["name"]], dropped=dropped,
        )  # fmt: skip
        self.counters[stage["name"]].append(accumulator)
        reached.connect(accumulator.s_in)
        accumulator.a_out.connect(port)

    def dense(self, weight, sent):
        # Mixed-sign weights lose their lowest bit, so codes travel doubled and the sum is halved again;
        # without message bits the sign of a spike would be lost.
        weights = weight.astype(float) if self.floating else 2 * weight.astype(np.int32)
        exact = {} if self.floating else {"weight_exp": -1}
        dense = self.Dense(weights=weights, num_message_bits=8, sign_mode=self.mixed, **exact)
        sent.connect(dense.s_in)
        return dense.a_out

    def convolution(self, weight, conv, sent):
        # Lava has images as [x, y, channel], we have [channel, y, x]; a line is an image of one row. Lava's
        # kernels are turned over, as a convolution in the mathematical sense has them.
        rank = len(conv["stride"])
        source = conv["source"] if rank == 2 else [conv["source"][0], 1, conv["source"][1]]
        pair = {key: tuple(reversed(conv[key])) for key in ("stride", "padding", "dilation")}
        if rank == 1:
            other = {"stride": 1, "padding": 0, "dilation": 1}
            pair = {key: (value[0], other[key]) for key, value in pair.items()}
            weight = weight[:, :, None]
        kernel = np.ascontiguousarray(np.transpose(weight, (0, 3, 2, 1))[:, ::-1, ::-1])
        made = self.Conv(
            weight=kernel.astype(self.number), input_shape=tuple(reversed(source)), groups=conv["groups"],
            num_message_bits=8, **pair,
        )  # fmt: skip
        sent.reshape(tuple(source)).transpose([2, 1, 0]).connect(made.s_in)
        size = int(np.prod(made.a_out.shape))
        return made.a_out.transpose([2, 1, 0]).reshape((size,))


HOST = "MARSNN_LOIHI_HOST"


def lacking():
    """What a run on Loihi 2 needs and doesn't find here, each with what to do."""
    from lava.utils import loihi

    found = []
    if not loihi.is_installed():
        found.append(
            "the vendor's package Lava-Loihi is not installed: members of Intel's Neuromorphic Research "
            "Community get it there; install it into this Python (%s)" % sys.executable
        )
    if not os.environ.get(HOST) and shutil.which("sinfo") is None:
        found.append(
            "no board: neither SLURM is here nor is %s set; set it to the address of the board's host" % HOST
        )
    return found


def on_board():
    """The vendor's run configuration, with a board chosen."""
    from lava.magma.core.run_configs import Loihi2HwCfg
    from lava.utils import loihi

    if os.environ.get(HOST):
        loihi.use_ethernet_host(os.environ[HOST])
    else:
        loihi.use_slurm_host()
    return Loihi2HwCfg(select_tag="fixed_pt")


def simulate(manifest, tensors, inputs, floating=False, run_cfg=None):
    """Run tokens [W, *] through the stages: name -> what each stage sent, and name -> saturations.

    The entry of a stage that sends a train is [W, T, N], of one that sends values [W, N].
    """
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from watch import Watch
    from wires import Sink

    builder = Builder(manifest, tensors, inputs, floating)
    source = builder.build(inputs)
    stages, steps, tokens = manifest["stages"], builder.steps, builder.tokens
    total = max(
        builder.opens[stage["name"]] + (tokens - 1) * steps + (steps - 1 if stage["kind"] in TRAINS else 0)
        for stage in stages
    )
    sent = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, stage in enumerate(stages):
            population = builder.senders[stage["name"]]
            path = os.path.join(folder, "%d.npy" % index)
            sink = Sink(shape=population.s_out.shape, total=total, path=path)
            population.s_out.connect(sink.a_in)
        tag = "floating_pt" if floating else "fixed_pt"
        try:
            chosen = run_cfg or Loihi2SimCfg(select_tag=tag)
            with Watch(source):
                source.run(condition=RunSteps(num_steps=total), run_cfg=chosen)
            saturations = {
                name: sum(int(process.n_sat.get()[0]) for process in counting)
                for name, counting in builder.counters.items()
            }
        finally:
            source.stop()
        for index, stage in enumerate(stages):
            wires = np.load(os.path.join(folder, "%d.npy" % index), allow_pickle=False)
            first = builder.opens[stage["name"]] - 1  # step n is row n - 1
            if stage["kind"] in TRAINS:
                span = wires[first : first + tokens * steps]
                sent[stage["name"]] = span.reshape(tokens, steps, -1)
            else:
                sent[stage["name"]] = wires[first : first + tokens * steps : steps]
    return sent, saturations


def compare(manifest, golden, sent):
    """Mismatches, spike slots, and where the first mismatch is, layer by layer and step by step."""
    wrong, slots, first = 0, 0, None
    for stage in manifest["stages"]:
        name = stage["name"]
        train = stage["kind"] in TRAINS
        expected = golden[("spikes/" if train else "values/") + name]
        differs = sent[name] != expected
        slots += differs.size if train else 0
        wrong += int(differs.sum())
        if differs.any() and first is None:
            place = tuple(int(i) for i in np.argwhere(differs)[0])
            axes = "token %d, step %d, neuron %d" if train else "token %d, neuron %d"
            first = "%s: %s: Lava sent %d, expected %d" % (
                name,
                axes % place,
                sent[name][place],
                expected[place],
            )
    return wrong, slots, first


def main():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description="Run a marsnn bundle in Lava and compare every spike.")
    parser.add_argument("bundle", nargs="?", default=here, help="the bundle's folder (default: this one)")
    parser.add_argument("--save", help="write what every stage sent to this .npz")
    parser.add_argument(
        "--backend", choices=("sim", "loihi2"), default="sim", help="Lava's CPU simulator, or a board"
    )
    options = parser.parse_args()
    try:
        with open(os.path.join(options.bundle, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        tensors = dict(np.load(os.path.join(options.bundle, "tensors.npz"), allow_pickle=False))
        golden = dict(np.load(os.path.join(options.bundle, "golden.npz"), allow_pickle=False))
    except (OSError, ValueError) as error:
        print("error: %s: %s" % (options.bundle, error), file=sys.stderr)
        return 2
    run_cfg = None
    if options.backend == "loihi2":
        missing = lacking()
        for each in missing:
            print("error: --backend loihi2: " + each, file=sys.stderr)
        if missing:
            return 2
        run_cfg = on_board()
        print(
            "stages are Python processes, which run on the board's host; Lava's own Dense and Conv run where "
            "the vendor's package puts them",
            file=sys.stderr,
        )
    sent, saturations = simulate(manifest, tensors, golden["inputs"], run_cfg=run_cfg)
    if options.save:
        arrays = {"sent/" + name: array for name, array in sent.items()}
        counted = np.array([saturations[stage["name"]] for stage in manifest["stages"]], dtype=np.int64)
        np.savez_compressed(options.save, saturations=counted, **arrays)
    wrong, slots, first = compare(manifest, golden, sent)
    print("%d mismatches of %d spike slots" % (wrong, slots))
    if first:
        print("first: " + first)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
