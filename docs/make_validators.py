"""Ask SANA-FE about four networks and write its table in docs/validators.md:  python docs/make_validators.py

Needs `make sanafe`; takes two minutes. The result is kept in benchmarks/validators.json; the table stands
between `<!-- sanafe -->` and `<!-- end -->`.
"""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from marsnn import ATMN, LIF, Network
from marsnn.files import json_text, write_text
from marsnn.hardware import export, validate_energy
from marsnn.hardware.chip import load_profile
from marsnn.hardware.place import events_of, place

DOCS = Path(__file__).parent
SECTION = re.compile(r"(<!-- sanafe -->\n).*?(<!-- end -->)", flags=re.DOTALL)
HEAD = "| network | tokens x T | synaptic events | messages | hops | largest difference |"


def networks():
    """Label -> network, input [L, B, *D], and how many neurons a core may hold."""
    torch.manual_seed(0)
    lif = Network(
        [nn.Linear(12, 30), LIF(30), nn.Linear(30, 30), LIF(30), nn.Linear(30, 5)], skips={"linear3": "lif1"}
    )
    images = Network(
        [
            nn.Conv2d(2, 4, 3, padding=1),
            ATMN(4, feature_dim=-3),
            nn.Conv2d(4, 3, 2, stride=2),
            ATMN(3, feature_dim=-3),
            nn.Flatten(),
            nn.Linear(27, 5),
        ]
    )
    wide = []
    for inputs in (64, 256, 256):
        wide += [nn.Linear(inputs, 256), ATMN(256, threshold=0.5)]
    deep = Network([*wide, nn.Linear(256, 10)])
    x = torch.randn(100, 1, 64)
    return {
        "12 - 30 - 30 - 5, `LIF`, a skip": (lif, 2 * torch.randn(20, 1, 12), 1024),
        "two convolutions, `ATMN`, 2 neurons a core": (images, 2 * torch.randn(20, 1, 2, 6, 6), 2),
        "64 - 256 - 256 - 256 - 10, `ATMN`": (deep, 2 * x, 1024),
        "the same, 16 neurons a core": (deep, 2 * x, 16),
    }


def asked():
    """A row for each network, JSON-ready."""
    rows = []
    for label, (network, x, neurons) in networks().items():
        with tempfile.TemporaryDirectory() as folder:
            bundle = export(network, x, Path(folder) / "bundle")
            chip = replace(load_profile("loihi1"), neurons_per_core=neurons)
            placement = place(bundle.graph, chip, events_of(bundle.golden), effort=0)
            result = validate_energy(bundle.path, placement)
        rows.append({"network": label, **result.to_dict()})
        print(result.text(), flush=True)
    return rows


def line(row):
    """A row of the page's table."""
    numbers = []
    for whats in (("synaptic events",), ("messages",), ("hops east-west", "hops north-south")):
        numbers.append(f"{sum(each['sanafe'] for each in row['counts'] if each['what'] in whats):,}")
    run = f"{row['tokens']} x {row['steps']}"
    return f"| {row['network']} | {run} | {' | '.join(numbers)} | {row['largest_difference']:.0e} |"


if __name__ == "__main__":
    rows = asked()
    write_text(DOCS.parent / "benchmarks" / "validators.json", json_text(rows))
    page = DOCS / "validators.md"
    table = "\n".join([HEAD, "|---|---|---|---|---|---|", *map(line, rows)])
    text = page.read_text(encoding="utf-8")
    write_text(page, SECTION.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text))
