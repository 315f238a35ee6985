"""Saving a picture whole, or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from marsnn.files import PathLike, write_bytes


def save_figure(ax: Axes, path: PathLike, dpi: int = 150) -> Path:
    """Write the figure that holds `ax` as a PNG and close it."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    return write_bytes(path, buffer.getvalue())
