"""Draw the pictures of README.md and docs/:  python docs/make_images.py

Overwrites docs/images/first_neuron.png, ATMN beside LIF on one input (the first notebook draws the same), and
docs/images/journey.png, what travels between the parts of the package.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch

from marsnn import ATMN, LIF, Network, plots, simulate

IMAGES = Path(__file__).parent / "images"


def first_neuron(path: Path) -> None:
    """24 neurons on one sine each, shifted in phase: the membrane of neuron 0 and the spikes of all."""
    token, phase = torch.arange(12)[:, None, None] / 12, torch.arange(24) / 24
    x = 1.6 * torch.sin(2 * torch.pi * (token + phase))  # [L = 12, B = 1, N = 24]
    network = Network({"atmn": ATMN(24)}), Network({"lif": LIF(24)})
    figure, axes = plt.subplots(
        4, sharex=True, figsize=(10, 8), height_ratios=(3, 2, 3, 2), layout="constrained"
    )
    for model, name, (above, below) in zip(network, ("atmn", "lif"), (axes[:2], axes[2:]), strict=True):
        recording = simulate(model, x)
        plots.traces(recording, model, name, ax=above)
        plots.raster(recording, ax=below)
    for ax in axes[:-1]:
        ax.set_xlabel("")
    axes[0].set_title("ATMN: input at t = 0, spikes of both signs", loc="left", fontsize=11)
    axes[2].set_title("LIF: input at every step, positive only", loc="left", fontsize=11)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


BOXES = {  # name: (x, y, second line)
    "x [L, B, D]": (0, 1, "tensor"),
    "Network": (1, 1, "layers, neurons, skips"),
    "Recording": (2, 2, "spikes, membranes"),
    "plots": (3, 2, "raster, traces, rates"),
    "OperationCounts": (2, 1, "MAC, AC, updates"),
    "EnergyReport": (3, 1, "fp32, int8, Loihi 1"),
    "IntegerGraph": (2, 0, "8-bit weights, 24-bit states"),
    "Bundle": (3, 0, "golden spikes, certificate"),
    "Lava": (4, 0, "0 mismatches of N"),
}
ARROWS = [
    ("x [L, B, D]", "Network", "train"),
    ("Network", "Recording", "simulate"),
    ("Recording", "plots", "draw"),
    ("Network", "OperationCounts", "count"),
    ("OperationCounts", "EnergyReport", "tables"),
    ("Network", "IntegerGraph", "quantize"),
    ("IntegerGraph", "Bundle", "export"),
    ("Bundle", "Lava", "verify"),
]
CLEAR = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}


def journey(path: Path) -> None:
    """Nouns in boxes, the verbs that lead from one to the next on the arrows."""
    figure, ax = plt.subplots(figsize=(11, 3.6), layout="constrained")
    across, up, wide, high = 2.5, 1.3, 1.62, 0.72
    for name, (x, y, below) in BOXES.items():
        corner = (x * across - wide / 2, y * up - high / 2)
        ax.add_patch(FancyBboxPatch(corner, wide, high, "round,pad=0.03", fc="#eef4f9", ec="#0072b2"))
        ax.text(x * across, y * up + 0.13, name, ha="center", va="center", fontsize=10, weight="bold")
        ax.text(x * across, y * up - 0.16, below, ha="center", va="center", fontsize=7.5)
    for start, end, verb in ARROWS:
        (x0, y0, _), (x1, y1, _) = BOXES[start], BOXES[end]
        tail = (x0 * across + wide / 2 + 0.05, y0 * up)
        head = (x1 * across - wide / 2 - 0.05, y1 * up)
        ax.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": "#d55e00"})
        middle = ((tail[0] + head[0]) / 2, (tail[1] + head[1]) / 2 + 0.08)
        ax.text(*middle, verb, ha="center", va="bottom", fontsize=8, color="#d55e00", bbox=CLEAR)
    ax.set(xlim=(-1, 4 * across + 1), ylim=(-0.6, 2 * up + 0.6))
    ax.axis("off")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    first_neuron(IMAGES / "first_neuron.png")
    journey(IMAGES / "journey.png")
