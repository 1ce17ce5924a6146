"""A study's cells gathered for its report: numbers with their tests, costs, and what a reader should know."""

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..comparing.averages import with_mean
from ..comparing.verdicts import ruined
from ..evaluation import Measurement
from ..guards import flags
from ..significance import remark_on
from .cells import Cell, measurements
from .numbers import Number, Series, number_of
from .plan import Study, Subject, Treatment
from .run import State

__all__ = ["Costs", "Gathered", "Reached", "Rows", "gathered"]


@dataclass(frozen=True)
class Reached:
    """What one recipe left of one model, as means over seeds."""

    sparsity: float  # of all matrices of the blocks, counted in the weights
    parameters: float
    bytes: float  # of the weights in memory
    error: float | None  # of outputs on the calibration text, relative, as solved: a mean over matrices; None where no statistics tell it


@dataclass(frozen=True)
class Costs:
    """What one cell took, as means over seeds; None where it is not known."""

    seconds: float | None  # of pruning
    deviation: float | None  # of these, over seeds
    processor: float | None  # seconds of processors in them, which do not grow when other work runs beside
    tokens: float | None  # forwarded, in passes through the whole dense model
    host_bytes: int | None  # the most memory that a process held while it pruned
    joules: float | None  # of the whole machine
    measuring: float | None  # seconds


@dataclass(frozen=True)
class Rows:
    """One model with all its recipes."""

    model: Subject
    numbers: tuple[Number, ...]
    reached: Mapping[str, Reached]  # by recipe; the empty name is the dense model
    costs: Mapping[str, Costs]  # the same
    seeds: Mapping[str, int]  # cells that are there, by recipe


@dataclass(frozen=True)
class Gathered:
    """All that a report says."""

    study: Study
    models: tuple[Rows, ...]
    flags: tuple[str, ...]  # why figures may not be what they look like; a reader sees these first
    notes: tuple[str, ...]  # what a reader should know
    failed: Mapping[str, str]  # cells, and what went wrong
    missing: int  # cells that were not run yet
    machines: tuple[str, ...]
    versions: Mapping[str, str]
    command: str  # that does it again


def gathered(state: State, file: Path) -> Gathered:
    """What there is, which may be a part of the study. Raises ComparisonError where cells are no pair."""
    study = state.plan.study
    models = tuple(_rows(state, model) for model in study.models)
    there = [cell for cell in state.cells if state.found(cell)]
    machines = dict.fromkeys(_took(state, cell)["environment"]["machine"] for cell in there)
    versions = state.plan.identity(state.cells[0])["versions"]  # files of others are not taken
    failed = {cell.name: str(state.results[cell.file]["failed"]["line"]) for cell in state.failed}
    words = ["prunus", "study", str(file), "--out", str(state.plan.store.folder), *(["--keep"] if study.keep else []),
             *(["--trust-remote-code"] if state.plan.trust else [])]
    return Gathered(study, models, tuple(dict.fromkeys(_flags(state))), tuple(_notes(state, there, len(machines))), failed,
                    len(state.cells) - len(there) - len(failed), tuple(machines), versions, shlex.join(words))


def _took(state: State, cell: Cell) -> dict[str, Any]:
    took: dict[str, Any] = state.results[cell.file]["took"]
    return took


def _cells(state: State, model: Subject, recipe: Treatment | None) -> dict[int, Cell]:
    """Those that are there, by seed; one that is the same for every seed stands for all."""
    cells = [cell for cell in state.cells if cell.model == model and cell.recipe == recipe and state.found(cell)]
    return {seed: cell for seed in state.plan.study.seeds for cell in cells if cell.seed in (None, seed)}


def _measured(state: State, cell: Cell) -> tuple[Measurement, ...]:
    found = state.found(cell)
    assert found is not None
    return with_mean(measurements(found))


def _rows(state: State, model: Subject) -> Rows:
    study = state.plan.study
    dense = next((_measured(state, cell) for cell in _cells(state, model, None).values()), ())
    by_recipe = {one.name: _cells(state, model, one) for one in study.recipes}
    several = {name: {seed: _measured(state, cell) for seed, cell in cells.items()} for name, cells in by_recipe.items()}
    count = max([len(dense), *(len(items) for each in several.values() for items in each.values())])
    baselines = _baselines(study)
    numbers = []
    for place in range(count):
        series = [Series(one.name, one.level, {seed: items[place] for seed, items in several[one.name].items()}, one.fixed,
                         baselines[one.level] == one.name) for one in study.recipes]
        numbers.append(number_of(dense[place] if dense else None, series))
    shown = {"": _cells(state, model, None), **by_recipe}
    there = {name: list({cell.file: cell for cell in cells.values()}.values()) for name, cells in shown.items()}
    some = {name: cells for name, cells in there.items() if cells}
    return Rows(model, tuple(numbers), {name: _reached([state.found(cell) or {} for cell in cells]) for name, cells in some.items()},
                {name: _costs([_took(state, cell) for cell in cells]) for name, cells in some.items()},
                {name: len(cells) for name, cells in there.items()})


def _baselines(study: Study) -> dict[str, str]:
    """The recipe that others of its level are tested against, by level."""
    found: dict[str, str] = {}
    for one in study.recipes:
        if study.baseline in (one.name, one.method):
            found.setdefault(one.level, one.name)
    for one in study.recipes:
        found.setdefault(one.level, one.name)
    return found


def _reached(found: Sequence[Mapping[str, Any]]) -> Reached:
    errors = [site["error"] for one in found for site in one["sites"] if site["error"] is not None]
    sparsity, parameters, size = (statistics.fmean(one[name] for one in found) for name in ("sparsity", "parameters", "bytes"))
    return Reached(sparsity, parameters, size, statistics.fmean(errors) if errors else None)


def _costs(took: Sequence[Mapping[str, Any]]) -> Costs:
    """Seconds of pruning are those of the whole run; solving is a part of another stage."""
    costs = [one["cost"] for one in took]
    seconds = [sum(value for stage, value in cost["seconds"].items() if stage != "solving") for cost in costs]
    known = [cost["host_bytes"] for cost in costs if cost["host_bytes"] is not None]
    processor = [cost["processor"] for cost in costs if "processor" in cost]
    tokens, joules = ([sum(cost[name].values()) for cost in costs if cost[name]] for name in ("tokens", "joules"))
    pruned = any(cost["seconds"] for cost in costs)
    return Costs(statistics.fmean(seconds) if pruned else None, statistics.stdev(seconds) if pruned and len(seconds) > 1 else None,
                 statistics.fmean(processor) if processor else None,
                 statistics.fmean(tokens) if tokens else None, max(known, default=None), statistics.fmean(joules) if joules else None,
                 statistics.fmean(one["measuring"] for one in took))


def _flags(state: State) -> Iterator[str]:
    """Of texts once, of models by seed."""
    for found in state.plan.overlaps.values():
        yield from flags((), (), found)
    for cell in state.cells:
        dense = state.found(Cell(cell.model))
        if not state.found(cell):
            continue
        measured = _measured(state, cell)
        yield from ruined(cell.name, measured)
        if cell.recipe and dense:
            yield from (f"{cell.name} {line[0].lower()}{line[1:]}" for line in flags(_measured(state, Cell(cell.model)), measured, ()))


def _notes(state: State, there: Sequence[Cell], machines: int) -> Iterator[str]:
    study = state.plan.study
    drawn = [one for one in study.recipes if not one.fixed]
    if drawn and (remark := remark_on(len(study.seeds))):
        yield remark
    if fixed := [one.name for one in study.recipes if one.fixed]:
        yield f"The same with every seed, so run once: {', '.join(fixed)}."
    if machines > 1:
        yield f"Cells were run on {machines} machines: seconds and energy of different ones are not comparable."
    if again := [cell.name for cell in there if _took(state, cell).get("resumed")]:
        yield (f"Interrupted on the way, and gone on with, so that costs are of the last part alone: {'; '.join(again)}.")
    remarks: dict[str, list[str]] = {}
    for cell in there:
        for note in (state.found(cell) or {}).get("notes", ()):
            remarks.setdefault(note, []).append(cell.name)
    for note, cells in remarks.items():
        yield f"{'; '.join(cells)}: {note}" if len(cells) < sum(cell.recipe is not None for cell in there) else note
