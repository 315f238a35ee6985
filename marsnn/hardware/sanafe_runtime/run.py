"""Replay spikes on SANA-FE's Loihi 1: run.py FOLDER, in a Python of its own with numpy and sanafe alone.

FOLDER/job.json   timesteps; prices in pJ; groups: name, soma, the core of each neuron, whether synapses that
                  end there have a price; edges: from which group to which
FOLDER/job.npz    fires/GROUP [S, N], non-zero where a neuron sends at a timestep; pairs/K [E, 2], the
                  synapses of edge K as (neuron that sends, neuron that takes)
FOLDER/told.json  written: what SANA-FE counted, and its energy

Every neuron is one of SANA-FE's input units, which send what they are told: the spikes are given, and SANA-FE
routes, counts and prices them. No synapse has a weight, as an input unit takes no current; their cost is the
same. The architecture is the loihi.yaml that comes with SANA-FE, with these numbers changed:

    dense synapse             synop
    sparse synapse            0: where an event is heard but meets no weight
    hops between tiles        hop_east_west, hop_north_south
    messages out, in          message; 0
    somas                     a unit for each neuron, of three sorts:
        neuron    update at every timestep, spike
        rail      spike alone: the second sign of a ternary neuron
        free      nothing: inputs, sums and relays, which are no neurons

SANA-FE runs three times: with a price of 1 for an update and 0 for the rest, so that each core's energy is
its number of updates; likewise for synaptic events; and with the prices of the job.
"""

import importlib.resources
import json
import os
import re
import sys
import tempfile

import numpy as np
import sanafe

UNITS = re.compile(r"^( *)- name: loihi_inputs\[0\.\.\d+\]\n(?:\1 +.*\n)+", re.MULTILINE)
PRICED, FREE = "loihi_dense_synapse", "loihi_sparse_synapse"
PICO = 1e-12
QUICK = {"timing_model": "simple", "processing_threads": 1}
AT_ONCE = 16  # timesteps: a trace holds an object for each message


def architecture(prices, units):
    """SANA-FE's own loihi.yaml at our prices (J), with `units` input units of each sort in a core."""
    text = (importlib.resources.files("sanafe") / "examples" / "loihi.yaml").read_text(encoding="utf-8")
    block = UNITS.search(text)
    if block is None:
        raise ValueError("sanafe's loihi.yaml has no loihi_inputs; this program knows that of sanafe 2.2.9")
    somas = ""
    for sort, number in units.items():
        energy = {
            "energy_access_neuron": prices["update"] if sort == "neuron" else 0.0,
            "energy_update_neuron": 0.0,
            "energy_spike_out": 0.0 if sort == "free" else prices["spike"],
        }
        somas += changed(re.sub(r"loihi_inputs\[.*\]", f"{sort}[0..{number}]", block.group()), energy)
    text = text[: block.start()] + somas + text[block.end() :]
    for unit, price in ((PRICED, prices["synop"]), (FREE, 0.0)):
        head, found, tail = text.partition(f"- name: {unit}")
        synapse, rest, more = tail.partition("- name: ")
        text = head + found + changed(synapse, {"energy_process_spike": price}) + rest + more
    text = changed(
        text,
        {
            "energy_message_in": 0.0,
            "energy_message_out": prices["message"],
            "energy_east_hop": prices["hop_east_west"],
            "energy_west_hop": prices["hop_east_west"],
            "energy_north_hop": prices["hop_north_south"],
            "energy_south_hop": prices["hop_north_south"],
        },
    )
    # a ternary neuron takes two units, so a core that is full holds more of them than it has neurons
    number = sum(units.values()) + len(units)
    return re.sub(
        r"( *)max_neurons_supported: \d+", rf"\1max_neurons_supported: {number}\n\1log_energy: true", text
    )


def changed(text, numbers):
    """The text with every `key: number` replaced."""
    for key, value in numbers.items():
        text, times = re.subn(rf"\b{key}: \S+", f"{key}: {value!r}", text)
        if not times:
            raise ValueError(f"sanafe's loihi.yaml has no {key}; this program knows that of sanafe 2.2.9")
    return text


def loaded(job, arrays, prices):
    """SANA-FE's chip with the job on it, at these prices."""
    units, names = units_of(job["groups"])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "loihi.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(architecture(prices, units))
        arch = sanafe.load_arch(path)
    cores, network, groups = arch.cores(), sanafe.Network(), {}
    for group in job["groups"]:
        name, fires = group["name"], arrays["fires/" + group["name"]] != 0
        made = groups[name] = network.create_neuron_group(
            name,
            len(group["cores"]),
            default_synapse_hw_name=PRICED if group["priced"] else FREE,  # of the synapses that end here
            log_spikes=True,
        )
        for neuron, (core, unit) in enumerate(zip(group["cores"], names[name], strict=True)):
            train = fires[:, neuron].tolist()
            made[neuron].set_attributes(soma_hw_name=unit, model_attributes={"spikes": train})
            made[neuron].map_to_core(cores[core])
    for number, (sender, taker) in enumerate(job["edges"]):
        pairs = [tuple(pair) for pair in arrays[f"pairs/{number}"].tolist()]
        groups[sender].connect_neurons_sparse(groups[taker], {"w": [0.0] * len(pairs)}, pairs)
    chip = sanafe.SpikingChip(arch)
    chip.load(network)
    order = [f"{tile.name}.{core.name}.energy" for tile in arch.tiles for core in tile.cores]
    return chip, order


def units_of(groups):
    """The largest number of a soma's units in any core, and the unit of each neuron by group."""
    largest, taken, names = {"neuron": 0, "rail": 0, "free": 0}, {}, {}
    for group in groups:
        soma, own = group["soma"], names.setdefault(group["name"], [])
        for core in group["cores"]:
            unit = taken.get((core, soma), 0)
            taken[core, soma] = unit + 1
            largest[soma] = max(largest[soma], unit)
            own.append(f"{soma}[{unit}]")
    return largest, names


def priced_alone(job, arrays, what):
    """How often each core did what has a price of 1, everything else having none."""
    chip, order = loaded(job, arrays, {**dict.fromkeys(job["prices"], 0.0), what: 1.0})
    perf = chip.sim(job["timesteps"], perf_trace=True, **QUICK)["perf_trace"]
    used = {core for group in job["groups"] for core in group["cores"]}
    return {core: round(sum(perf[order[core]])) for core in sorted(used)}


def told(job, arrays):
    """Counts, from runs that price one thing alone, and energy in pJ, from one at the prices of the job."""
    updates, events = (priced_alone(job, arrays, what) for what in ("update", "synop"))
    chip, _ = loaded(job, arrays, {key: value * PICO for key, value in job["prices"].items()})
    spikes = dict.fromkeys((group["name"] for group in job["groups"]), 0)
    messages, hops, energy = {}, 0, {}
    for first in range(0, job["timesteps"], AT_ONCE):
        steps = min(AT_ONCE, job["timesteps"] - first)
        result = chip.sim(steps, spike_trace=True, message_trace=True, perf_trace=True, **QUICK)
        for neuron in (neuron for fired in result["spike_trace"] for neuron in fired):
            spikes[neuron.group_name] += 1
        for message in (message for sent in result["message_trace"] for message in sent):
            if not message["placeholder"]:
                entry = messages.setdefault(message["src_neuron_group_id"], [0, 0, 0])
                entry[0] += 1
                entry[1] += abs(message["dest_x"] - message["src_x"])
                entry[2] += abs(message["dest_y"] - message["src_y"])
        hops += sum(result["perf_trace"]["hops"])
        for part, value in result["energy"].items():
            energy[part] = energy.get(part, 0.0) + value / PICO
    passed = sum(entry[1] + entry[2] for entry in messages.values())
    if passed != hops:
        raise ValueError(f"sanafe counted {hops} hops, its messages have {passed}")
    return {
        "spikes": spikes,
        "messages": messages,
        "updates": updates,
        "events": events,
        "energy_pj": energy,
    }


def main():
    """Read the job, run it, write what was told."""
    folder = sys.argv[1]
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    with np.load(os.path.join(folder, "job.npz"), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    answer = told(job, arrays)
    with open(os.path.join(folder, "told.json"), "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
