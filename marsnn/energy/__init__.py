"""Energy of an inference: operations counted and priced by named tables, which is an estimate; and apart from
it joules measured, where this machine has a meter.
"""

from marsnn.energy.audit import count
from marsnn.energy.counts import Hops, LayerCounts, OperationCounts
from marsnn.energy.measured import MeasuredEnergy, Measurement, measure, measure_network
from marsnn.energy.meter import find_meters
from marsnn.energy.report import EnergyReport
from marsnn.energy.tables import EnergyTable, load_table, table_names

__all__ = [
    "EnergyReport",
    "EnergyTable",
    "Hops",
    "LayerCounts",
    "MeasuredEnergy",
    "Measurement",
    "OperationCounts",
    "count",
    "find_meters",
    "load_table",
    "measure",
    "measure_network",
    "table_names",
]
