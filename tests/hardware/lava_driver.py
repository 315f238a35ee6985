"""Runs under Lava's Python 3.10: every case of a folder through the runtime, one after the other.

python lava_driver.py RUNTIME CASES [--floating] [--part K/OF]
"""

import argparse
import gc
import json
import os
import sys

import numpy as np

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runtime")
    parser.add_argument("cases")
    parser.add_argument("--floating", action="store_true")
    parser.add_argument("--part", default="0/1", help="every so manieth case only, from the Kth on")
    options = parser.parse_args()
    sys.path.insert(0, options.runtime)
    from run import simulate

    first, stride = (int(number) for number in options.part.split("/"))
    for name in sorted(os.listdir(options.cases))[first::stride]:
        folder = os.path.join(options.cases, name)
        with open(os.path.join(folder, "manifest.json")) as file:
            manifest = json.load(file)
        tensors = dict(np.load(os.path.join(folder, "tensors.npz"), allow_pickle=False))
        inputs = tensors.pop("inputs")
        sent, saturations = simulate(manifest, tensors, inputs, floating=options.floating)
        if not gc.get_freeze_count():
            gc.freeze()  # what is imported by now is neither searched nor copied by processes that Lava forks
        counted = np.array([saturations[stage["name"]] for stage in manifest["stages"]])
        np.savez(os.path.join(folder, "sent.npz"), saturations=counted, **sent)
