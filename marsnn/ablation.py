"""Ablations: neurons x steps x tau x surrogates x seeds on one task, equally tuned, paired by seeds.

    for each neuron, T (and tau, surrogate, where they are axes)
        every candidate setting is trained with the tuning seeds and scored on the validation part
        the best one is trained once with each reported seed and scored once on the test part

Every neuron chooses among the same number of settings. Tuning seeds are never reported, and no choice sees
the test part. Finished cells are kept in a journal beside the table and never run again.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

import marsnn
from marsnn import neurons as registry
from marsnn.checks import count, positive
from marsnn.energy import EnergyReport, LayerCounts, OperationCounts, load_table
from marsnn.energy.report import DEFAULT_TABLES
from marsnn.errors import InputError, MarsnnError, ShapeError
from marsnn.files import PathLike, probe
from marsnn.journal import Journal
from marsnn.progress import track
from marsnn.tasks import Source, Task, load_task, resolved
from marsnn.tidy import DENSE, ENERGY, Group, check_table, markdown, summarize, write_table
from marsnn.training import TrainConfig, logits
from marsnn.trial import (
    SURROGATES,
    TRAINING,
    Cell,
    Factory,
    Settings,
    Setup,
    arguments,
    build,
    identity,
    run_cell,
)
from marsnn.workers import Engine, Failed, Run, check_engine, check_picklable, engine

TUNING_SEEDS = (100, 101)
"""Never among the seeds that are reported."""

FORMAT = "marsnn.ablation/1"


@dataclass(frozen=True)
class AblationConfig:
    """What is varied, and how it is run; the sentences below are the command line's help too."""

    steps: Sequence[int] = field(
        default=(1, 2, 4, 8), metadata={"help": "values of T, the micro-steps of a token"}
    )
    tau: Sequence[float] | None = field(
        default=None,
        metadata={"help": "values of each neuron's own tau; without it tau is chosen on the validation part"},
    )
    surrogates: Sequence[str] | None = field(
        default=None, metadata={"help": "names of marsnn.surrogate; without it each neuron's default"}
    )
    seeds: int | Sequence[int] = field(
        default=5, metadata={"help": "trainings of each network after tuning, paired across neurons"}
    )
    epochs: int = field(default=30, metadata={"help": "passes over the training data"})
    batch_size: int = field(default=64, metadata={"help": "samples per update"})
    hidden: int = field(default=128, metadata={"help": "neurons in each of the two hidden layers"})
    tables: Sequence[str] = field(
        default=DEFAULT_TABLES, metadata={"help": "tables of energies: shipped names or .toml files"}
    )
    engine: Engine = field(
        default="local", metadata={"help": "local: processes of this machine; ray: a Ray cluster"}
    )
    workers: int = field(default=2, metadata={"help": "processes at a time"})
    address: str | None = field(
        default=None,
        metadata={"help": "of a Ray cluster, or auto; without it RAY_ADDRESS, or a cluster started here"},
    )

    def __post_init__(self) -> None:
        own: dict[str, tuple[Any, ...]] = {"seeds": self.reported}
        for name in ("steps", "tau", "surrogates", "tables"):
            if getattr(self, name) is not None:
                own[name] = _several(getattr(self, name))
        own["steps"] = tuple(count("steps", T) for T in own["steps"])
        for tau in own.get("tau", ()):
            positive("tau", tau)
        if "tau" in own:
            own["tau"] = tuple(float(tau) for tau in own["tau"])
        for name, values in own.items():
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name} must be one or more different values, got {list(values)}")
            object.__setattr__(self, name, values)
        unknown = [name for name in self.surrogates or () if name not in SURROGATES]
        if unknown:
            raise InputError(f"no surrogate named {unknown[0]!r}; known: {', '.join(SURROGATES)}")
        for name in ("epochs", "batch_size", "hidden"):
            count(name, getattr(self, name))
        check_seeds(self.reported)
        for table in self.tables:
            load_table(table)
        check_engine(self.engine, self.workers)
        if self.address is not None and self.engine != "ray":
            raise InputError('address is that of a Ray cluster; add engine="ray"')

    @property
    def reported(self) -> tuple[int, ...]:
        """The seeds, one by one."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else _several(self.seeds)


def _several(values: Any) -> tuple[Any, ...]:
    return (values,) if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse reported seeds that are no whole numbers, or that tuning uses."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seeds must be whole numbers >= 0, got {seed!r}")
    taken = sorted(set(seeds) & set(TUNING_SEEDS))
    if taken:
        raise InputError(f"seed {taken[0]} chooses the settings, so it can't be reported; use other seeds")


# ---- choosing settings: the one home of "tune equally on validation" -----------------------------------

Arm = TypeVar("Arm", bound=Hashable)


class Trial(NamedTuple, Generic[Arm]):
    """One training on the way to a choice."""

    arm: Arm
    settings: Settings
    seed: int


class Choice(NamedTuple):
    """What an arm chose, and its mean score on the validation part."""

    settings: Settings
    validation: float


def tune(
    candidates: Mapping[Arm, Sequence[Settings]],
    score: Callable[[list[Trial[Arm]]], Sequence[float | None]],
    seeds: Sequence[int] = TUNING_SEEDS,
) -> dict[Arm, Choice]:
    """The best of each arm's settings, by the mean validation score over the tuning seeds.

    Args:
        candidates: arm -> its settings; as many for every arm, or the comparison is not fair.
        score: all trials -> their scores on the validation part, in order; None for one that failed.
        seeds: of the tuning.

    Returns:
        A choice for each arm of which no trial failed; of equal means the first setting wins.
    """
    if len({len(settings) for settings in candidates.values()}) > 1 or not all(candidates.values()):
        shown = ", ".join(f"{arm}: {len(settings)}" for arm, settings in candidates.items())
        raise InputError(f"every arm must choose among as many settings, at least one; got {shown}")
    trials = [
        Trial(arm, settings, seed) for arm, grid in candidates.items() for settings in grid for seed in seeds
    ]
    scores = iter(score(trials))
    choices = {}
    for arm, grid in candidates.items():
        means = [_mean([next(scores) for _ in seeds]) for _ in grid]
        told = [mean for mean in means if mean is not None]
        if len(told) == len(grid):
            choices[arm] = Choice(grid[told.index(max(told))], max(told))
    return choices


def _mean(scores: Sequence[float | None]) -> float | None:
    told = [score for score in scores if score is not None]
    return statistics.mean(told) if len(told) == len(scores) else None


def grid(**choices: Sequence[Any]) -> tuple[Settings, ...]:
    """Every combination of the choices, the last one varying fastest."""
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


RATES = (3e-3, 1e-2)


def candidates_of(factory: Factory, tau: float | None = None) -> tuple[Settings, ...]:
    """The six settings that a neuron chooses among: two learning rates, three of its own settings.

    Which ones follows from its constructor's arguments: tau and threshold together, the one that it has, or
    the weight decay where it has neither. A neuron whose default tau is below 1 (ATMN) is offered 1/2 and 1,
    any other 2 and more.

    Args:
        factory: the neuron's.
        tau: of the axis; then it is no free setting.
    """
    own = arguments(factory)
    grows = isinstance(own.get("tau"), float | int) and own["tau"] < 1
    if tau is not None:
        fixed = {"tau": tau}
    elif "tau" in own and "threshold" in own:
        codes = ((0.5, 0.5), (0.5, 1.0), (1.0, 0.5)) if grows else ((2.0, 0.5), (2.0, 1.0), (4.0, 1.0))
        return tuple(
            {"learning_rate": rate, "tau": tau, "threshold": threshold}
            for rate in RATES
            for tau, threshold in codes
        )
    else:
        fixed = {}
    if "threshold" in own:
        free = grid(learning_rate=RATES, threshold=(0.5, 1.0, 2.0))
    elif "tau" in own and tau is None:
        free = grid(learning_rate=RATES, tau=(0.25, 0.5, 1.0) if grows else (2.0, 4.0, 8.0))
    else:
        free = grid(learning_rate=RATES, weight_decay=(1e-3, 1e-2, 1e-1))
    return tuple({**settings, **fixed} for settings in free)


# ---- the ablation -------------------------------------------------------------------------------------


class Point(NamedTuple):
    """What is tuned once: a neuron at one value of every axis that it has."""

    neuron: str
    steps: int
    tau: float | None
    surrogate: str | None

    def __str__(self) -> str:
        axes = (("T", self.steps), ("tau", self.tau), ("surrogate", self.surrogate))
        return f"{self.neuron} at " + ", ".join(
            f"{name} = {value}" for name, value in axes if value is not None
        )


@dataclass(frozen=True)
class Ablation:
    """The result: tidy rows, and what was chosen on the way.

    Attributes:
        rows: one for each reported network; `marsnn.tidy` says what the columns mean.
        tuning: one for each candidate setting: neuron, steps, tau, surrogate, settings, validation_accuracy.
    """

    rows: list[dict[str, Any]]
    tuning: list[dict[str, Any]]

    @cached_property
    def groups(self) -> list[Group]:
        """Means, intervals and paired differences to the first neuron."""
        return summarize(self.rows)

    def text(self) -> str:
        """The groups as a Markdown table."""
        return markdown(self.groups)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: rows, tuning, and the groups with their ratios to the dense twin."""
        groups = [
            {**asdict(group), "ratio": {table: group.ratio(table) for table in group.energy_pj}}
            for group in self.groups
        ]
        return {"format": FORMAT, "groups": groups, "rows": self.rows, "tuning": self.tuning}

    def save(self, path: PathLike) -> Path:
        """Write the rows as .csv or .parquet."""
        return write_table(self.rows, path)


def ablate(
    task: Source = "digits",
    neurons: Sequence[str] | Mapping[str, Factory] = ("ATMN", "LIF"),
    config: AblationConfig | None = None,
    *,
    out: PathLike | None = None,
    grids: Mapping[str, Sequence[Settings]] | None = None,
    progress: bool = False,
    **changes: Any,
) -> Ablation:
    """Compare neurons on a task: equally tuned, paired by seeds, with what each one costs.

    Args:
        task: "digits", "digits-rows", "topics", "selective-copying", `file.py:function`,
            `package.module:function`, or a function; see `marsnn.tasks`.
        neurons: registered names, or name -> factory(features, steps=T, **settings). The first one is what
            the others are compared with. With several workers a factory must be picklable: a function at the
            top level of a module.
        config: what is varied and how it is run.
        out: the table, .csv or .parquet; finished cells are kept in `OUT.journal.jsonl` beside it, and a
            later call runs only what is missing there: after an interruption, or with more seeds or neurons.
        grids: neuron -> the settings it chooses among, in place of `candidates_of`; as many for every neuron.
        progress: draw bars on a terminal.
        changes: fields of `AblationConfig` by name, on top of `config`.

    Returns:
        The rows, and the choices on the way.

    Raises:
        InputError: a setting, a neuron or a task can't be used; nothing was trained then.
        FileError: `out` or its journal can't be written, or the journal is of another configuration.
        MarsnnError: cells failed; the message names the first, the others are kept.

    Example:
        >>> from marsnn import ablate
        >>> found = ablate("digits", ["ATMN", "LIF"], steps=[2], seeds=2, epochs=1, hidden=8, workers=1)
        >>> [(row["neuron"], row["seed"]) for row in found.rows]
        [('ATMN', 0), ('ATMN', 1), ('LIF', 0), ('LIF', 1)]
    """
    config = _changed(config or AblationConfig(), changes)
    factories = _factories(neurons)
    if out is not None:
        check_table(out)
        probe(out)
    source = resolved(task)
    loaded = load_task(source)
    setup = Setup(source, loaded.fingerprint, factories, config.epochs, config.batch_size, config.hidden)
    if config.engine == "local" and config.workers > 1:
        check_picklable(setup)
    offered = _offered(config, factories, grids or {})
    _try_all(setup, loaded, offered)
    with (
        Journal(None if out is None else f"{out}.journal.jsonl", _header(setup, loaded)) as journal,
        engine(config.engine, config.workers, config.address) as run,
    ):
        cells = _Cells(setup, journal, run, loaded.name, progress)
        choices = tune(offered, cells.validate)
        reported = [
            (point, _cell("test", point, choice.settings, seed))
            for point, choice in choices.items()
            for seed in config.reported
        ]
        cells.finish([cell for _, cell in reported], "testing")
        cells.raise_failures()
        rows = [
            _row(loaded.name, point, choices[point], cell, cells.result(cell), config.tables)
            for point, cell in reported
        ]
        ablation = Ablation(rows, _tuning_rows(cells, offered))
    if out is not None:
        ablation.save(out)
    return ablation


def _changed(config: AblationConfig, changes: Mapping[str, Any]) -> AblationConfig:
    known = [each.name for each in fields(AblationConfig)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise InputError(f"ablate() has no setting {unknown[0]!r}; known: {', '.join(known)}")
    return replace(config, **changes)


def _factories(neurons: Sequence[str] | Mapping[str, Factory]) -> dict[str, Factory]:
    if isinstance(neurons, Mapping):
        found = dict(neurons)
        for name, factory in found.items():
            if not isinstance(name, str) or not callable(factory):
                raise InputError(f"neurons maps names to factories, got {name!r}: {factory!r}")
    else:
        names = (neurons,) if isinstance(neurons, str) else tuple(neurons)
        if len(set(names)) < len(names):
            raise InputError(f"neurons must be different, got {', '.join(names)}")
        found = {name: registry.get(name) for name in names}
    if not found:
        raise InputError(f"ablate() needs at least one neuron; known: {', '.join(registry.names())}")
    return found


def _offered(
    config: AblationConfig, factories: Mapping[str, Factory], grids: Mapping[str, Sequence[Settings]]
) -> dict[Point, tuple[Settings, ...]]:
    """Every neuron at every value of the axes that it has, and the settings that each chooses among."""
    unknown = sorted(set(grids) - set(factories))
    if unknown:
        raise InputError(f"grids has settings of {unknown[0]!r}; the neurons are {', '.join(factories)}")
    offered = {}
    for name, factory in factories.items():
        own = arguments(factory)
        taus = config.tau if config.tau is not None and "tau" in own else (None,)
        spikes = config.surrogates if config.surrogates is not None and "surrogate" in own else (None,)
        for steps, tau, surrogate in itertools.product(config.steps, taus, spikes):
            given = grids.get(name)
            offered[Point(name, steps, tau, surrogate)] = (
                candidates_of(factory, tau) if given is None else _checked_grid(name, given, tau)
            )
    return offered


def _checked_grid(name: str, given: Sequence[Settings], tau: float | None) -> tuple[Settings, ...]:
    for settings in given:
        for key, value in settings.items():
            if not isinstance(value, str | bool | int | float):
                raise InputError(f"{name}: the setting {key} must be a number, a bool or text, got {value!r}")
        if tau is not None and "tau" in settings:
            raise InputError(f"{name}: tau is an axis here; leave it out of the grid")
    return tuple({**settings, **({} if tau is None else {"tau": tau})} for settings in given)


def _cell(part: Any, point: Point, settings: Settings, seed: int) -> Cell:
    return Cell(part, point.neuron, point.steps, point.surrogate, tuple(sorted(settings.items())), seed)


def _try_all(setup: Setup, task: Task, offered: Mapping[Point, Sequence[Settings]]) -> None:
    """Build and call every network that will be trained, so that what can't work is told at once."""
    for point, grid in offered.items():
        for settings in grid:
            cell = _cell("validation", point, settings, 0)
            try:
                TrainConfig(**{name: value for name, value in settings.items() if name in TRAINING})
                with torch.random.fork_rng(devices=()), torch.no_grad():
                    scores = logits(
                        build(task, setup.factories[point.neuron], cell, setup.hidden), task.train.x[:, :2]
                    )
            except Exception as error:
                kind = "" if isinstance(error, MarsnnError) else f"{type(error).__name__}: "
                raise InputError(f"{point}: {kind}{error}") from error
            if scores.shape[-1] < task.classes:
                raise ShapeError(
                    f"{task.name}: its network tells {scores.shape[-1]} classes apart, y has {task.classes}"
                )


def _header(setup: Setup, task: Task) -> dict[str, Any]:
    """What all cells of a journal have in common."""
    return {
        "format": FORMAT,
        "marsnn": marsnn.__version__,
        "torch": torch.__version__,
        "task": task.name,
        "data": setup.fingerprint,
        "epochs": setup.epochs,
        "batch_size": setup.batch_size,
        "hidden": setup.hidden,
    }


class _Cells:
    """Runs what is not in the journal yet."""

    def __init__(self, setup: Setup, journal: Journal, run: Run, task: str, progress: bool) -> None:
        self.setup = setup
        self.journal = journal
        self.run = run
        self.task = task
        self.progress = progress
        self.failures: dict[Cell, str] = {}

    def validate(self, trials: list[Trial[Point]]) -> list[float | None]:
        """Scores on the validation part: what `tune` asks for."""
        cells = [_cell("validation", *trial) for trial in trials]
        self.finish(cells, "tuning")
        return [self.score(cell) for cell in cells]

    def score(self, cell: Cell) -> float | None:
        """Its accuracy, None if it failed."""
        return None if cell in self.failures else self.result(cell)["accuracy"]

    def finish(self, cells: Sequence[Cell], what: str) -> None:
        """Run those that are missing, the long ones first, and write each down as it ends."""
        missing = [cell for cell in dict.fromkeys(cells) if self.key(cell) not in self.journal]
        missing.sort(key=lambda cell: -cell.steps)
        results = self.run(run_cell, [(self.setup, cell) for cell in missing])
        for _ in track(range(len(missing)), f"{what} on {self.task}", enabled=self.progress):
            index, result = next(results)
            if isinstance(result, Failed):
                self.failures[missing[index]] = result.message
            else:
                self.journal.add(self.key(missing[index]), result)

    def key(self, cell: Cell) -> dict[str, Any]:
        """The cell in the journal."""
        factory = identity(self.setup.factories[cell.neuron])
        return {**asdict(cell), "settings": dict(cell.settings), "factory": factory}

    def result(self, cell: Cell) -> dict[str, Any]:
        """What `run_cell` returned, now or in an earlier run."""
        return self.journal[self.key(cell)]

    def raise_failures(self) -> None:
        """Name the first cell that failed, now that all others are kept."""
        if self.failures:
            cell, message = next(iter(self.failures.items()))
            kept = f"; all others are kept in {self.journal.path}" if self.journal.path else ""
            raise MarsnnError(f"{len(self.failures)} cells failed, the first: {cell}: {message}{kept}")


# ---- rows ---------------------------------------------------------------------------------------------


def _row(
    task: str, point: Point, choice: Choice, cell: Cell, result: Mapping[str, Any], tables: Sequence[str]
) -> dict[str, Any]:
    counts = LayerCounts(**result["counts"])
    samples = result["samples"]
    run = OperationCounts({"all": counts}, samples, point.steps, result["unattributed"])
    settings = dict(choice.settings)
    tuned = sorted(set(settings) - ({"tau"} if point.tau is not None else set()))
    energies = EnergyReport(run, tables=tables).totals
    return {
        "task": task,
        "neuron": point.neuron,
        "steps": point.steps,
        "tau": settings.pop("tau", None),
        "surrogate": point.surrogate,
        "seed": cell.seed,
        "tuned": " ".join(tuned),
        "weight_decay": TrainConfig.weight_decay,
        "threshold": None,
        **settings,
        "validation_accuracy": choice.validation,
        "accuracy": result["accuracy"],
        "spikes_per_step": counts.spikes / counts.neuron_updates if counts.neuron_updates else None,
        "accumulates": counts.ac / samples,
        "graded_accumulates": counts.graded_ac / samples,
        "macs": counts.mac / samples,
        **{ENERGY + table: energy.spiking_pj for table, energy in energies.items()},
        **{DENSE + table: e.dense_pj for table, e in energies.items() if e.dense_pj is not None},
        **{name: result[name] for name in ("code_snr_db", "diverged", "wall_s", "peak_memory_mb")},
    }


def _tuning_rows(cells: _Cells, offered: Mapping[Point, Sequence[Settings]]) -> list[dict[str, Any]]:
    rows = []
    for point, grid in offered.items():
        for settings in grid:
            own = [_cell("validation", point, settings, seed) for seed in TUNING_SEEDS]
            mean = statistics.mean(cells.result(cell)["accuracy"] for cell in own)
            rows.append({**point._asdict(), **settings, "validation_accuracy": mean})
    return rows
