"""Cells on disk: what a study has measured already, each in a JSON file of its own with all that decides it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..comparing.kept import measurement_of
from ..errors import ComparisonError, ExportError, RecipeError
from ..evaluation import Measurement
from ..files import fingerprint, put_text, readable
from ..recipe import Recipe, build, plain
from .plan import Study, Subject, Treatment, file_name

__all__ = ["CELLS", "UNFINISHED", "Cell", "Look", "Store", "cells_of", "measurements", "plain_measurements"]

CELLS = "cells"  # the folder of results, in that of the study
MODELS, UNFINISHED = "models", "unfinished"  # folders of pruned models that are kept, and of cells that were interrupted


@dataclass(frozen=True)
class Look:
    """What was seen of a model before it is pruned."""

    weights: str  # a hash of its weights, its config and its tokenizer
    read: str  # its dtype, how it was stored and its tokenizer, as protocols say it


@dataclass(frozen=True)
class Cell:
    """One model with one recipe and one seed; or the model as it is."""

    model: Subject
    recipe: Treatment | None = None  # None: the dense model
    seed: int | None = None  # None of the dense model, and of a recipe that gives the same with every seed

    @property
    def name(self) -> str:
        """As a person reads it."""
        return ", ".join([self.model.name, self.recipe.name if self.recipe else "dense",
                          *([] if self.seed is None else [f"seed {self.seed}"])])

    @property
    def file(self) -> str:
        """The name of its file, and of its model's folder, without an ending."""
        parts = [self.model.name, *([self.recipe.name] if self.recipe else ["dense-model"])]
        return "--".join([*map(file_name, parts), *([] if self.seed is None else [f"seed-{self.seed}"])])

    def planned(self) -> Recipe | None:
        """Its recipe with its seed; what is measured is the study's."""
        return replace(self.recipe.recipe, seed=self.seed or 0) if self.recipe else None


def cells_of(study: Study) -> Iterator[Cell]:
    """All of them, in the order in which they are run: model by model, and of each all recipes with a seed before the next one."""
    for model in study.models:
        yield Cell(model)
        for place, seed in enumerate(study.seeds):
            for recipe in study.recipes:
                if not recipe.fixed:
                    yield Cell(model, recipe, seed)
                elif not place:
                    yield Cell(model, recipe)


@dataclass(frozen=True)
class Store:
    """The folder of a study."""

    folder: Path

    def read(self, cell: Cell, identity: Mapping[str, Any], overwrite: bool = False) -> dict[str, Any] | None:
        """What was found, or how it failed; None where the cell was not run, or is to be run again.

        Raises ComparisonError where the file is of a cell with the same name and another identity: that is never taken for this one.
        """
        file = self._file(cell)
        found = readable(file)
        if not file.exists() or (overwrite and not _same(found, identity)):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("identity"), dict) or not found.keys() & {"found", "failed"}:
            raise ComparisonError(f"{file}: is no result of a study, or is damaged. Remove it, or say --overwrite.")
        if not _same(found, identity):
            if "failed" in found:  # there is nothing in it that could be taken for this one
                return None
            where, there, here = next(_differences(_identity(found), identity))
            raise ComparisonError(f"{file}: is of another study: {where} is {there} there and {here} here. Choose another folder with "
                                  "--out, or say --overwrite to run such cells again.")
        return found

    def write(self, cell: Cell, identity: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep what was found; a crash leaves the whole file or none. Raises ExportError."""
        file = self._file(cell)
        names = {"model": cell.model.name, "source": cell.model.source, "recipe": cell.recipe.name if cell.recipe else None,
                 "seed": cell.seed}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            put_text(file, json.dumps({"cell": names, "identity": identity, **result}, ensure_ascii=False))
        except OSError as error:
            raise ExportError(f"{file}: cannot be written: {error.strerror or error}.") from error

    def model(self, cell: Cell) -> Path:
        """Where its pruned model is kept."""
        return self.folder / MODELS / cell.file

    def unfinished(self, identity: Mapping[str, Any]) -> Path:
        """Where its finished blocks wait while it runs."""
        return self.folder / UNFINISHED / fingerprint(json.dumps(identity, sort_keys=True))

    def _file(self, cell: Cell) -> Path:
        return self.folder / CELLS / f"{cell.file}.json"


def _same(found: Any, identity: Mapping[str, Any]) -> bool:
    """Whether nothing differs that both say: before a model is loaded, its weights are not known."""
    there = _identity(found) if isinstance(found, dict) else None
    return isinstance(there, dict) and next(_differences(there, identity), None) is None


def _identity(found: Mapping[str, Any]) -> Any:
    """What a file says; of its recipe, keys that came into recipes after it was written say what they say where they are left out."""
    identity = found.get("identity")
    if not isinstance(identity, dict) or not isinstance(identity.get("recipe"), dict):
        return identity
    try:
        return {**identity, "recipe": plain(build(Recipe, identity["recipe"], "recipe"))}
    except RecipeError:
        return identity


def _differences(there: Any, here: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Places of two identities, and what they say, where it is not the same."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys((*there, *here)):
            if where == "model" and key not in here:
                continue
            yield from _differences(there.get(key, "missing"), here.get(key, "missing"), f"{where}.{key}" if where else str(key))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for place, (one, other) in enumerate(zip(there, here, strict=True)):
            yield from _differences(one, other, f"{where}[{place}]")
    elif there != here:
        yield where, _short(there), _short(here)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def plain_measurements(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """As tables; Python's JSON has words for what is infinite or no number."""
    return [asdict(item) for item in measured]


def measurements(found: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """What a cell has measured."""
    return tuple(map(measurement_of, found["measured"]))
