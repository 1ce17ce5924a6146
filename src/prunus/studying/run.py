"""A study from beginning to end: what is checked before a model is loaded, what is missing, and cell after cell."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..calibration.placement import Placement
from ..comparing.measuring import Piece, pieces_of
from ..environment import machine
from ..files import check_place, working_alone
from ..grams import Overlap
from ..guards import overlaps
from ..loading import parse_dtype, weight_files
from ..recipe import Recipe, plain
from .cells import CELLS, UNFINISHED, Cell, Look, Store, cells_of
from .plan import Study
from .work import Failed, Job, Watch, Worker

__all__ = ["Plan", "State", "Told", "carry_out", "planned", "state_of"]


@dataclass(frozen=True)
class Plan:
    """A study of which everything was checked that can be before a model is loaded."""

    study: Study
    store: Store
    pieces: tuple[Piece, ...]
    overlaps: Mapping[str, tuple[Overlap, ...]]  # by the name of a recipe
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # hashes of what a recipe reads, by its name
    overwrite: bool = False  # run cells again whose files are of another study
    trust: bool = False  # run code that comes with a model

    def identity(self, cell: Cell, look: Look | None = None) -> dict[str, Any]:
        """All that decides what a cell finds but the names, as JSON has it; without a look, all but what only the loaded model says."""
        recipe, versions = cell.planned(), {key: value for key, value in machine().items() if key in ("prunus", "torch", "transformers")}
        found = {"model": {"weights": look.weights, "read": look.read} if look else {}, "recipe": plain(recipe) if recipe else "none",
                 "texts": self.texts[cell.recipe.name] if cell.recipe else {},
                 "metrics": {piece.name: piece.identity for piece in self.pieces}, "device": self.study.device, "versions": versions}
        same: dict[str, Any] = json.loads(json.dumps(found))
        return same


@dataclass(frozen=True)
class State:
    """What there is of every cell."""

    plan: Plan
    cells: tuple[Cell, ...]
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by the cell's file: those that are there or failed

    @property
    def missing(self) -> tuple[Cell, ...]:
        """The cells that are to be run: failed ones again, and those whose models are to be kept and are not there."""
        return tuple(cell for cell in self.cells if not self.has(cell))

    @property
    def failed(self) -> tuple[Cell, ...]:
        """The cells that failed."""
        return tuple(cell for cell in self.cells if "failed" in self.results.get(cell.file, {}))

    def has(self, cell: Cell) -> bool:
        """Whether nothing is to be done for a cell."""
        kept = cell.recipe is None or not self.plan.study.keep or self.plan.store.model(cell).is_dir()
        return self.found(cell) is not None and kept

    def found(self, cell: Cell) -> Mapping[str, Any] | None:
        """What was found, where it was."""
        found: Mapping[str, Any] | None = self.results.get(cell.file, {}).get("found")
        return found

    def seconds(self, cell: Cell) -> float | None:
        """What a cell may take: as other seeds of it did, or other recipes with its model; None where none is there."""
        took = [(other, float(self.results[other.file]["took"]["whole"])) for other in self.cells if self.found(other) is not None]
        took = [(other, seconds) for other, seconds in took if (other.recipe is None) == (cell.recipe is None)]
        near = [(other.recipe == cell.recipe, other.model == cell.model) for other, _ in took]  # the recipe says more than the model
        return fmean(seconds for (_, seconds), how in zip(took, near, strict=True) if how == max(near)) if took else None

    @property
    def left(self) -> float | None:
        """Seconds that the missing cells may take together; None where of one nothing can be said."""
        each = [self.seconds(cell) for cell in self.missing]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)


def planned(study: Study, out: Path, *, overwrite: bool = False, trust: bool = False) -> Plan:
    """Check everything that can be checked before a model is loaded, and find what is measured.

    Raises RecipeError, CorpusError, MissingExtra, LoadError where a model is not there, and ExportError where `out` is in the way.
    """
    check_place(out, "" if (out / CELLS).is_dir() else "exists, and is not of an earlier study. Choose another folder.")
    Placement(study.device)
    for model in study.models:
        parse_dtype(model.dtype)
        weight_files(model.source)
    asked = study.metrics.asked(study.device)
    pieces = pieces_of(asked)
    metrics = tuple(piece.metric for piece in pieces)
    found: dict[str, tuple[Overlap, ...]] = {}
    seen: dict[str, tuple[Overlap, ...]] = {}  # recipes that read the same texts are compared once
    for one in study.recipes:
        recipe = replace(one.recipe, metrics=metrics)
        read = json.dumps([plain(recipe.calibration) if recipe.calibrated else "",
                           *(plain(stage.search) for stage in recipe.stage if stage.search)], sort_keys=True)
        if read not in seen:
            seen[read] = overlaps(recipe, recipe.calibrated)
        found[one.name] = seen[read]
    texts = {one.name: _texts(one.recipe) for one in study.recipes}
    return Plan(study, Store(out), pieces, found, texts, overwrite, trust)


def _texts(recipe: Recipe) -> dict[str, str]:
    """Hashes of the texts and files that a recipe names, as these may change."""
    texts = {"calibration": recipe.calibration.text() if recipe.calibrated else None}
    texts |= {f"search {place}": stage.search.reads() for place, stage in enumerate(recipe.stage) if stage.search}
    found = {name: text.digest for name, text in texts.items() if text is not None}
    return found | {path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in _files(plain(recipe))}


def _files(data: Any) -> Iterator[str]:
    match data:
        case Mapping():
            for value in data.values():
                yield from _files(value)
        case list():
            for value in data:
                yield from _files(value)
        case str() if "." in data and len(data) < 1000 and Path(data).is_file():
            yield data


def state_of(plan: Plan, looks: Mapping[str, Look] | None = None) -> State:
    """What is there; without looks at the models, as far as it shows without loading them. Raises ComparisonError where files are of
    another study."""
    cells = tuple(cells_of(plan.study))
    found = {cell.file: plan.store.read(cell, plan.identity(cell, (looks or {}).get(cell.model.name)), plan.overwrite) for cell in cells}
    return State(plan, cells, {file: result for file, result in found.items() if result is not None})


@dataclass(frozen=True)
class Told:
    """Told of as it happens."""

    begins: Callable[[Cell, State], None] = lambda cell, state: None
    ends: Callable[[Cell, Mapping[str, Any]], None] = lambda cell, result: None
    watch: Watch = lambda progress: None


def carry_out(plan: Plan, worker: Worker, tell: Told = Told()) -> State:
    """Run what is missing, one cell after the other; a cell that fails does not end the others.

    Raises ExportError where another process runs the study, PrunusError where a model cannot be opened, and ComparisonError where files
    are of another study, before any cell is run.
    """
    with working_alone(plan.store.folder):
        looks = {model.name: worker.look(model, plan.study.device, plan.trust) for model in plan.study.models}
        state = state_of(plan, looks)
        for cell in state.missing:
            tell.begins(cell, state)
            result = _run(plan, worker, tell.watch, cell, looks[cell.model.name], state.found(Cell(cell.model)))
            state = replace(state, results={**state.results, cell.file: result})
            tell.ends(cell, result)
        if not state.missing:
            shutil.rmtree(plan.store.folder / UNFINISHED, ignore_errors=True)
    return state


def _run(plan: Plan, worker: Worker, watch: Watch, cell: Cell, look: Look, dense: Mapping[str, Any] | None) -> dict[str, Any]:
    """One cell, and its file; `dense` is what was found of the model as it is."""
    identity = plan.identity(cell, look)
    unfinished = plan.store.unfinished(identity)
    again = unfinished.is_dir()
    answer = worker.work(Job(cell.model, cell.planned(), tuple(map(_light, plan.pieces)), plan.study.device, plan.trust, unfinished,
                             plan.store.model(cell) if plan.study.keep and cell.recipe else None,
                             plan.overlaps[cell.recipe.name] if cell.recipe else (), dense), watch)
    result = _result(answer, again)
    plan.store.write(cell, identity, result)
    return result


def _light(piece: Piece) -> Piece:
    """Without texts, which the metric reads itself."""
    return replace(piece, texts=())


def _result(answer: Mapping[str, Any] | Failed, again: bool) -> dict[str, Any]:
    """As a file keeps it; `again`: an earlier run had begun with it."""
    if isinstance(answer, Failed):
        return {"failed": {"line": answer.line, "trace": answer.trace}}
    return {**answer, "took": {**answer["took"], "resumed": again}}
