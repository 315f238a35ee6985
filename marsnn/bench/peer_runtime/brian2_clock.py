"""Runs under any Python with brian2: a bundle's LIF populations as NeuronGroups, timed as in lava_clock.py.

    python brian2_clock.py RUNTIME BUNDLE OUT.npz

A brian2 step is a chip's step: leak, arrivals, threshold, then what the spikes bring to the next one; numbers
are whole and lie in doubles. What the input brings is computed beforehand, which is to brian2's advantage.
Runtime mode, with Cython where that is installed; by numpy where there is so little to run that compiling
takes longer.
"""

import json
import os
import sys
import time

import brian2 as b2
import numpy as np

SHORT = 64
"""Tokens."""

NEURON = """
a : 1
v : 1
fire : 1 (constant)
amplitude : 1 (constant)
decay : 1 (constant)
bias : 1 (constant)
begin : integer (shared, constant)
"""
STEP = """
total = v * decay
v = (sign(total) * floor(abs(total)) + a + bias{driven}) * int(t_in_timesteps >= begin)
a = 0
"""


def main(runtime, bundle, out):
    b2.prefs.logging.std_redirection = False
    b2.defaultclock.dt = 1 * b2.ms
    with open(os.path.join(bundle, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    tensors = dict(np.load(os.path.join(bundle, "tensors.npz"), allow_pickle=False))
    inputs = np.load(os.path.join(bundle, "golden.npz"), allow_pickle=False)["inputs"].astype(np.float64)
    if len(inputs) < SHORT:
        b2.prefs.codegen.target = "numpy"
    T, W = manifest["steps"], manifest["tokens"]
    if manifest["tokens_per_sample"] != W:
        raise SystemExit("one sample at a time")
    network = b2.Network()
    groups, begins, watched = {}, {"input": -1}, {}
    for stage in manifest["stages"]:
        name, (synapse,) = stage["name"], stage["synapses"]
        begins[name] = begins[synapse["source"]] + 1
        numbers = {
            key: tensors["stages/%s/%s" % (name, key)]
            for key in ("fire", "amplitude", "decay")
            if stage["kind"] == "lif"
        }
        weight = tensors["synapses/%s/weight" % synapse["name"]].astype(np.float64) * 2.0 ** synapse["shift"]
        offset = tensors["stages/%s/bias/in" % name]
        plain = all(stage["carry"] == "sequence" and stage["reset"] == "subtract" for _ in numbers)
        if synapse["form"] != "dense" or stage["kind"] not in ("lif", "sum") or not plain:
            raise SystemExit("only LIF with a state that lasts, and a readout, can be simulated here")
        if stage["kind"] == "sum":
            group = b2.NeuronGroup(len(offset), "a : 1", name=name)
            watched[name] = b2.StateMonitor(group, "a", record=True, when="end")
        else:
            driven = ""
            if synapse["source"] == "input":
                brought = b2.TimedArray(np.repeat(inputs @ weight.T, T, axis=0), dt=b2.defaultclock.dt)
                driven = " + brought(t, i)"
            group = b2.NeuronGroup(
                len(offset), NEURON, threshold="v >= fire and t_in_timesteps >= begin",
                reset="v -= amplitude",
                name=name,
                namespace={"brought": brought},
            )  # fmt: skip
            group.run_regularly(STEP.format(driven=driven), when="before_thresholds")
            group.fire, group.amplitude, group.bias = numbers["fire"], numbers["amplitude"], offset
            group.decay = numbers["decay"] / 4096
            group.begin = begins[name]
            watched[name] = b2.SpikeMonitor(group)
        network.add(group, watched[name])
        if synapse["source"] != "input":
            through = b2.Synapses(groups[synapse["source"]], group, "w : 1", on_pre="a_post += w")
            through.connect()
            through.w = weight.T.reshape(-1)
            network.add(through)
        groups[name] = group
    steps = W * T + max(begins.values())
    began = time.perf_counter()
    network.run(b2.defaultclock.dt)
    started = time.perf_counter()
    network.run((steps - 1) * b2.defaultclock.dt)
    ended = time.perf_counter()
    sent = {}
    for stage in manifest["stages"]:
        name = stage["name"]
        monitor, begin = watched[name], begins[name]
        if stage["kind"] == "lif":
            train = np.zeros((steps, len(groups[name])), dtype=np.int8)
            train[np.round(monitor.t / b2.defaultclock.dt).astype(int), np.asarray(monitor.i)] = 1
            sent[name] = train[begin : begin + W * T].reshape(W, T, -1)
        else:  # sums since the beginning, to the last step of each token's train
            sums = np.asarray(monitor.a).T[begin - 1 + T - 1 :: T][:W]
            sums = np.diff(np.concatenate([np.zeros((1, sums.shape[1])), sums]), axis=0)
            sent[name] = sums.astype(np.int32) + tensors["stages/%s/bias/in" % name].astype(np.int32)
    arrays = {"sent/" + name: array for name, array in sent.items()}
    np.savez(out, clock=np.array([started - began, ended - started, steps - 1]), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
