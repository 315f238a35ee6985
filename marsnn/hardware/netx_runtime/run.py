"""Run a netx file in Lava through lava-dl's own netx, and compare every spike with the golden ones in it.

    python run.py FILE        with Python 3.10, numpy, h5py, lava-nc and lava-dl (--no-deps: no torch needed)

Exit 0: no mismatch. 1: mismatches, and where the first one is. 2: the file can't be read or run.
"""

import argparse
import json
import os
import sys
import tempfile

import h5py
import numpy as np

sys.dont_write_bytecode = True


def turned(array):
    """[*, C, H, W] to [*, W, H, C] and back: Lava orders the axes of an image the other way around."""
    return array.transpose(0, 3, 2, 1) if array.ndim == 4 else array


def simulate(path, data, steps, message_bits=0, reset_interval=None, reset_offset=1, drops=False):
    """What each layer sent at the steps 1 to total, [total, *N].

    Args:
        path: the netx file.
        data: input [W, *D], each row held for `steps` steps.
        message_bits: 0 for spikes, 8 for graded input.
        reset_interval, reset_offset: when the states are cleared, as `hdf5.Network` takes them.
        drops: whether layers that hear themselves forget what is on its way back then. Lava clears the
            neurons alone, so it stops before each such step, and their recurrent sums become 0.
    """
    from ends import Sink, Source
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from load import hdf5

    network = hdf5().Network(
        net_config=path,
        input_message_bits=message_bits,
        reset_interval=reset_interval,
        reset_offset=reset_offset,
    )
    total = len(data) * steps + len(network.layers)
    source = Source(data=np.ascontiguousarray(turned(data.astype(np.int32))), steps=steps)
    source.s_out.connect(network.inp)
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, "%d.npy" % index) for index in range(len(network.layers))]
        for layer, file in zip(network.layers, files, strict=True):
            sink = Sink(shape=layer.out.shape, total=total, path=file)
            layer.out.connect(sink.a_in)
        try:
            config, done = Loihi2SimCfg(select_tag="fixed_pt"), 0
            stops = clearings(network, reset_interval, reset_offset, total) if drops else {}
            for stop in [*sorted(stops), total]:
                source.run(condition=RunSteps(num_steps=stop - done), run_cfg=config)
                done = stop
                for sums in stops.get(stop, ()):
                    sums.set(np.zeros(sums.shape))
        finally:
            source.stop()
        return [turned(np.load(file, allow_pickle=False)) for file in files]


def clearings(network, interval, offset, total):
    """Step after which to stop -> the recurrent sums to be cleared then, of all layers that have some."""
    stops = {}
    for index, layer in enumerate(network.layers):
        if interval is not None and hasattr(layer, "synapse_rec"):
            for step in range((offset + index) % interval, total, interval):
                if step:
                    stops.setdefault(step, []).append(layer.synapse_rec.a_buff)
    return stops


def compare(golden, sent, steps):
    """Mismatches, spike slots, and where the first mismatch is, layer by layer and step by step.

    Layer i, from 0, answers the first step of the input at its row 1 + i.
    """
    wrong, slots, first = 0, 0, None
    for index, (expected, train) in enumerate(zip(golden, sent, strict=True)):
        rows = train[1 + index : 1 + index + len(expected) * steps]
        differs = rows.reshape(expected.shape) != expected
        slots += differs.size
        wrong += int(differs.sum())
        if differs.any() and first is None:
            place = tuple(int(i) for i in np.argwhere(differs)[0])
            where = (index, place[0], place[1], place[2:], 1 - int(expected[place]), int(expected[place]))
            first = "layer %d, token %d, step %d, neuron %s: Lava sent %d, expected %d" % where
    return wrong, slots, first


def main():
    parser = argparse.ArgumentParser(description="Run a netx file of marsnn in Lava, compare every spike.")
    parser.add_argument("file", help="the netx file")
    parser.add_argument("--inputs", help="an .npy of other inputs [W, *D]; nothing is compared then")
    parser.add_argument("--save", help="write what every layer sent, [steps, *N], to this .npz")
    options = parser.parse_args()
    header, golden = {}, None
    try:
        with h5py.File(options.file, "r") as file:
            if "marsnn" in file:
                header = json.loads(bytes(file["marsnn/header"][()]))
            if options.inputs:
                data = np.load(options.inputs, allow_pickle=False)
            else:
                data = file["marsnn/inputs"][()]
                golden = [file["marsnn/spikes/%d" % i][()] for i in range(len(header["names"]))]
        keys = ("steps", "message_bits", "reset_interval", "reset_offset", "drops")
        settings = {"steps": 1, **{key: header[key] for key in keys if key in header}}
        sent = simulate(options.file, data, **settings)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        print("error: %s: %s" % (options.file, error), file=sys.stderr)
        return 2
    if options.save:
        np.savez_compressed(options.save, **{str(index): train for index, train in enumerate(sent)})
    if golden is None:
        return 0
    wrong, slots, first = compare(golden, sent, settings["steps"])
    print("%d mismatches of %d spike slots" % (wrong, slots))
    if first:
        print("first: " + first)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
