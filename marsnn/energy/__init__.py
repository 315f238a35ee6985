"""Energy of an inference: operations counted, then priced by named tables. Estimated, never measured."""

from marsnn.energy.audit import count
from marsnn.energy.counts import Hops, LayerCounts, OperationCounts
from marsnn.energy.report import EnergyReport
from marsnn.energy.tables import EnergyTable, load_table, table_names

__all__ = [
    "EnergyReport",
    "EnergyTable",
    "Hops",
    "LayerCounts",
    "OperationCounts",
    "count",
    "load_table",
    "table_names",
]
