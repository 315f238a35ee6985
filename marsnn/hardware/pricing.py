"""price_of: what an export asks for, in whatever mode it was written."""

from __future__ import annotations

from pathlib import Path

from marsnn.files import PathLike
from marsnn.hardware.bundle import Bundle, load
from marsnn.hardware.price import ModePrice, price_of_run
from marsnn.hardware.stock_file import StockNet, read_stock


def price_of(exported: Bundle | StockNet | PathLike) -> ModePrice:
    """The price of an export by its golden run: one of the modes "window", "count" and "stock-lif".

    Counted from the integers, not read from a report.

    Args:
        exported: what `marsnn.export` gave, or its path: a bundle's folder, or the file of "stock-lif".

    Raises:
        FileError: there is no such export, or it is damaged.
    """
    if not isinstance(exported, Bundle | StockNet):
        exported = read_stock(exported) if Path(exported).is_file() else load(exported)
    if isinstance(exported, StockNet):
        return exported.price()
    return price_of_run(exported.graph, exported.inputs, exported.golden, str(exported.manifest["mode"]))
