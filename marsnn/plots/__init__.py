"""Pictures of a run: each function draws on the `ax` it is given, or on a new figure, and returns the axes.

Nothing is shown and no global setting is touched: the figure is the caller's to title, save or close.
Blue is a positive spike and orange a negative one everywhere.
"""

from marsnn.plots.ablation import accuracy_energy
from marsnn.plots.bands import raster
from marsnn.plots.distillation import arm_intervals, recovery_curve
from marsnn.plots.energy import energy_bars
from marsnn.plots.lengths import over_length
from marsnn.plots.membranes import traces
from marsnn.plots.placement import core_map
from marsnn.plots.rates import firing_rates
from marsnn.plots.refinement import energy_curves, layer_curves, plan_bars, quality_bars, rate_map
from marsnn.plots.speed import speed_bars, speed_scaling

__all__ = [
    "accuracy_energy",
    "arm_intervals",
    "core_map",
    "energy_bars",
    "energy_curves",
    "firing_rates",
    "layer_curves",
    "over_length",
    "plan_bars",
    "quality_bars",
    "raster",
    "rate_map",
    "recovery_curve",
    "speed_bars",
    "speed_scaling",
    "traces",
]
