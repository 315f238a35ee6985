"""Runs under Lava's Python 3.10: every netx file of a folder through the runtime, one after the other.

python netx_driver.py RUNTIME FOLDER
"""

import gc
import json
import os
import sys

import h5py
import numpy as np

if __name__ == "__main__":
    runtime, folder = sys.argv[1], sys.argv[2]
    sys.path.insert(0, runtime)
    from run import simulate

    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        with h5py.File(path, "r") as file:
            header = json.loads(bytes(file["marsnn/header"][()]))
            inputs = file["marsnn/inputs"][()]
        keys = ("steps", "message_bits", "reset_interval", "reset_offset", "drops")
        sent = simulate(path, inputs, **{key: header[key] for key in keys})
        if not gc.get_freeze_count():
            gc.freeze()  # what is imported by now is neither searched nor copied by processes that Lava forks
        np.savez(path + ".npz", **{str(index): train for index, train in enumerate(sent)})
