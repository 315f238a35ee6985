"""Runs under Lava's Python: one bundle through the runtime, with starting and running timed apart.

    python lava_clock.py RUNTIME BUNDLE OUT.npz

The first step compiles the processes and starts them; all other steps are what is called running. OUT gets
what every stage sent, its saturations, and clock: seconds to start, seconds to run, steps run.
"""

import json
import os
import sys
import time

import numpy as np


def main(runtime, bundle, out):
    sys.path.insert(0, runtime)
    from lava.magma.core.process.process import AbstractProcess
    from lava.magma.core.run_conditions import RunSteps
    from run import simulate

    clock = {}
    run_whole = AbstractProcess.run

    def run_apart(self, condition, run_cfg=None, **rest):
        began = time.perf_counter()
        run_whole(self, RunSteps(num_steps=1), run_cfg, **rest)
        started = time.perf_counter()
        run_whole(self, RunSteps(num_steps=condition.num_steps - 1), run_cfg, **rest)
        clock.update(
            start_s=started - began, run_s=time.perf_counter() - started, steps=condition.num_steps - 1
        )

    AbstractProcess.run = run_apart
    with open(os.path.join(bundle, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    tensors = dict(np.load(os.path.join(bundle, "tensors.npz"), allow_pickle=False))
    inputs = np.load(os.path.join(bundle, "golden.npz"), allow_pickle=False)["inputs"]
    sent, saturations = simulate(manifest, tensors, inputs)
    arrays = {"sent/" + name: array for name, array in sent.items()}
    counted = np.array([saturations[stage["name"]] for stage in manifest["stages"]])
    np.savez(
        out, saturations=counted, clock=np.array([clock["start_s"], clock["run_s"], clock["steps"]]), **arrays
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
