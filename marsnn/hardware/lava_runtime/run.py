"""Run a bundle in Lava and compare every spike with the golden ones.

    python runtime_lava/run.py                  inside the bundle's folder, or
    python runtime_lava/run.py BUNDLE           with Python 3.10, numpy and lava-nc; nothing else

Exit 0: no mismatch. 1: mismatches, and where the first one is. 2: the bundle can't be read.
"""

import argparse
import json
import os
import sys
import tempfile

import numpy as np

sys.dont_write_bytecode = True  # a bundle stays as it was exported

ARRAYS = ("weight", "bias", "fire", "amplitude")
GATE_ARRAYS = ("multiplier", "argument_shift", "product_shift", "level", "table")
ONCE = {"readout": "outputs/", "gate": "products/"}  # kinds that send once a token, and their golden arrays


def opening_steps(stages, steps):
    """First opening step of each stage: see window.py."""
    opens, previous = [], None
    for stage in stages:
        if previous is None:
            previous = 2
        else:
            previous += 1 if stage["kind"] == "lif" or stage["arrival"] == "direct" else steps
        opens.append(previous)
    return opens


def simulate(manifest, tensors, inputs, floating=False):
    """Run tokens [W, D] through the stages: name -> what each stage sent, and name -> saturations.

    A neuron's entry is [W, T, N], a readout's and a gate's [W, N].
    """
    from atmn import ATMN
    from gate import Gate
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.dense.process import Dense
    from lava.utils.weightutils import SignMode
    from lif import LIF
    from readout import Readout
    from wires import Line, Sink, Source

    kinds = {"atmn": ATMN, "lif": LIF, "readout": Readout}
    stages, steps, tokens = manifest["stages"], manifest["steps"], len(inputs)
    opens = opening_steps(stages, steps)
    total = max(
        opened + (tokens - 1) * steps + (0 if stage["kind"] in ONCE else steps - 1)
        for opened, stage in zip(opens, stages, strict=True)
    )
    number = float if floating else np.int32
    sender = source = Source(data=inputs.astype(number), steps=steps)
    populations = {}

    def synapses(weight, sender):
        # Mixed-sign weights lose their lowest bit, so codes travel doubled and the sum is halved again;
        # without message bits the sign of a spike would be lost.
        weights = weight.astype(float) if floating else 2 * weight.astype(np.int32)
        exact = {} if floating else {"weight_exp": -1}
        dense = Dense(weights=weights, num_message_bits=8, sign_mode=SignMode.MIXED, **exact)
        sender.s_out.connect(dense.s_in)
        return dense

    with tempfile.TemporaryDirectory() as folder:
        for index, (stage, opened) in enumerate(zip(stages, opens, strict=True)):
            name = stage["name"]
            weight, bias, fire, amplitude = (tensors[name + "/" + key] for key in ARRAYS)
            clock = {
                "steps": steps,
                "tokens": tokens,
                "open_at": opened,
                "arrival": stage["arrival"],
                "shift": stage["shift"],
                "decay": stage["decay"],
                "per_sample": manifest["tokens_per_sample"] if stage["carry"] == "sequence" else 0,
                "zero_reset": stage["reset"] == "zero",
            }
            if stage["kind"] == "gate":
                shape = (len(bias) // 2,)
                own = {key: tensors[name + "/" + key].astype(number) for key in GATE_ARRAYS}
                population = Gate(bias=bias.astype(number), **own, **clock)
                to_argument, to_factor = np.split(weight, 2)
                synapses(to_argument, sender).a_out.connect(population.a_in)
                synapses(to_factor, sender).a_out.connect(population.up_in)
            else:
                shape = bias.shape
                if stage["kind"] == "readout":
                    fire = amplitude = np.zeros_like(bias)
                population = kinds[stage["kind"]](
                    bias=bias.astype(number),
                    fire=fire.astype(number),
                    amplitude=amplitude.astype(number),
                    **clock,
                )
                if stage["arrival"] == "direct":
                    incoming = Line(shape=shape)
                    sender.s_out.connect(incoming.s_in)
                else:
                    incoming = synapses(weight, sender)
                incoming.a_out.connect(population.a_in)
            sink = Sink(shape=shape, total=total, path=os.path.join(folder, "%d.npy" % index))
            population.s_out.connect(sink.a_in)
            populations[name] = sender = population
        tag = "floating_pt" if floating else "fixed_pt"
        try:
            source.run(condition=RunSteps(num_steps=total), run_cfg=Loihi2SimCfg(select_tag=tag))
            saturations = {name: int(p.n_sat.get()[0]) for name, p in populations.items()}
        finally:
            source.stop()
        sent = {}
        for index, (stage, opened) in enumerate(zip(stages, opens, strict=True)):
            wires = np.load(os.path.join(folder, "%d.npy" % index), allow_pickle=False)
            first = opened - 1  # step n is row n - 1
            if stage["kind"] in ONCE:
                sent[stage["name"]] = wires[first : first + tokens * steps : steps]
            else:
                span = wires[first : first + tokens * steps]
                sent[stage["name"]] = span.reshape(tokens, steps, -1)
    return sent, saturations


def compare(manifest, golden, sent):
    """Mismatches, spike slots, and where the first mismatch is, layer by layer and step by step."""
    wrong, slots, first = 0, 0, None
    for stage in manifest["stages"]:
        name = stage["name"]
        once = stage["kind"] in ONCE
        expected = golden[ONCE.get(stage["kind"], "spikes/") + name]
        differs = sent[name] != expected
        slots += 0 if once else differs.size
        wrong += int(differs.sum())
        if differs.any() and first is None:
            place = tuple(int(i) for i in np.argwhere(differs)[0])
            axes = "token %d, neuron %d" if once else "token %d, step %d, neuron %d"
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
    options = parser.parse_args()
    try:
        with open(os.path.join(options.bundle, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        tensors = dict(np.load(os.path.join(options.bundle, "tensors.npz"), allow_pickle=False))
        golden = dict(np.load(os.path.join(options.bundle, "golden.npz"), allow_pickle=False))
    except (OSError, ValueError) as error:
        print("error: %s: %s" % (options.bundle, error), file=sys.stderr)
        return 2
    sent, saturations = simulate(manifest, tensors, golden["inputs"])
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
