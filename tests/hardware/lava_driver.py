"""Runs under Lava's Python 3.10: every case of a folder through the runtime, one after the other.

python lava_driver.py RUNTIME CASES [--floating]
"""

import json
import os
import sys

import numpy as np

if __name__ == "__main__":
    runtime, cases = sys.argv[1], sys.argv[2]
    sys.path.insert(0, runtime)
    from run import simulate

    for name in sorted(os.listdir(cases)):
        folder = os.path.join(cases, name)
        with open(os.path.join(folder, "manifest.json")) as file:
            manifest = json.load(file)
        tensors = dict(np.load(os.path.join(folder, "tensors.npz"), allow_pickle=False))
        inputs = tensors.pop("inputs")
        sent, saturations = simulate(manifest, tensors, inputs, floating="--floating" in sys.argv)
        counted = np.array([saturations[stage["name"]] for stage in manifest["stages"]])
        np.savez(os.path.join(folder, "sent.npz"), saturations=counted, **sent)
