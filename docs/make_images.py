"""Draw the pictures of README.md and docs/:  python docs/make_images.py

Overwrites docs/images/first_neuron.png, ATMN beside LIF on one input; the first notebook draws the same.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

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


if __name__ == "__main__":
    first_neuron(IMAGES / "first_neuron.png")
