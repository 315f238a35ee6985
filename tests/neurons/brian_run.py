"""LIF networks in Brian 2, run by Brian's own Python: brian_run.py FOLDER answers every *.npz with a *.out.

Each step of Brian's clock is one micro-step, and every update is written out as it is in `lif_step`. Brian
delivers a spike one step after it was fired, so layer k runs k steps behind the input, and what a population
sends to itself comes back at its next step. Needs numpy, brian2.
"""

import sys
from pathlib import Path

import numpy as np
from brian2 import Network, NeuronGroup, SpikeMonitor, StateMonitor, Synapses, TimedArray, ms, prefs

prefs.codegen.target = "numpy"
prefs.codegen.loop_invariant_optimisations = False  # every operation as written, and in its order

EQUATIONS = """
v : 1
held : 1
arrived : 1
returned : 1
bias : 1 (constant)
beta : 1 (constant)
threshold : 1 (constant)
"""
UPDATE = """
v = beta * v * keep(t) + (held + arrived + returned * brought(t) + bias)
arrived = 0
returned = 0
"""
RESETS = {"subtract": "v -= threshold", "zero": "v = 0"}


def run(case):
    """Spikes and membranes [L, T, B, N] of each layer, by "spikes/k" and "membrane/k"."""
    x, steps, layers = case["x"], int(case["steps"]), int(case["layers"])
    tokens, samples, features = x.shape
    micro = tokens * steps
    dt = 1 * ms
    held = np.zeros((micro + layers, samples * features))
    held[:micro] = np.repeat(x.reshape(tokens, -1), steps, axis=0)
    source = NeuronGroup(samples * features, "x = presented(t, i) : 1", dt=dt)
    namespace = {"presented": TimedArray(held, dt)}
    network, groups, monitors = Network(source), [], []
    for layer in range(layers):
        weight = case[f"weight/{layer}"]
        count, width = weight.shape
        keep = np.ones(micro + layers)
        keep[layer : layer + micro : steps if case[f"carry/{layer}"] == "token" else micro] = 0
        group = NeuronGroup(
            samples * count,
            EQUATIONS,
            threshold=f"v {case['fires']} threshold",
            reset=RESETS[str(case[f"reset/{layer}"])],
            dt=dt,
            namespace={
                "keep": TimedArray(keep, dt),
                "brought": TimedArray(keep if case["drops"] else np.ones_like(keep), dt),
            },
        )
        for name in ("bias", "beta", "threshold"):
            setattr(group, name, np.tile(np.broadcast_to(case[f"{name}/{layer}"], count), samples))
        update = group.run_regularly(UPDATE, dt=dt, when="groups", order=1)
        if layer == 0:
            synapses = Synapses(source, group, "w : 1\nheld_post = w * x_pre : 1 (summed)", dt=dt)
        else:
            synapses = Synapses(groups[-1], group, "w : 1", on_pre="arrived_post += w", dt=dt)
            weight = weight * case[f"threshold/{layer - 1}"]  # what a spike is worth
        sample, target, sender = np.indices((samples, count, width)).reshape(3, -1)
        synapses.connect(i=sample * width + sender, j=sample * count + target)
        synapses.w = weight[target, sender]
        if f"loop/{layer}" in case:
            own = case[f"loop/{layer}"] * case[f"threshold/{layer}"]
            late = case["late"] * dt
            loop = Synapses(group, group, "w : 1", on_pre="returned_post += w", delay=late, dt=dt)
            sample, target, sender = np.indices((samples, count, count)).reshape(3, -1)
            loop.connect(i=sample * count + sender, j=sample * count + target)
            loop.w = own[target, sender]
            network.add(loop)
        spikes, membrane = SpikeMonitor(group), StateMonitor(group, "v", record=True, when="end", dt=dt)
        network.add(group, update, synapses, spikes, membrane)
        groups.append(group)
        monitors.append((spikes, membrane, count))
    network.run((micro + layers) * dt, namespace=namespace)
    found = {}
    for layer, (spikes, membrane, count) in enumerate(monitors):
        fired = np.zeros((micro + layers, samples * count), dtype=np.int8)
        fired[np.rint(np.asarray(spikes.t / dt)).astype(int), np.asarray(spikes.i)] = 1
        shape = (tokens, steps, samples, count)
        found[f"spikes/{layer}"] = fired[layer : layer + micro].reshape(shape)
        found[f"membrane/{layer}"] = np.asarray(membrane.v).T[layer : layer + micro].reshape(shape)
    return found


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            answer = run(dict(arrays))
        with path.with_suffix(".out").open("wb") as file:
            np.savez(file, **answer)
