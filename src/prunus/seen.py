"""What a model was trained on, kept beside its weights: a search on the same would find what was learned by heart."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .calibration.corpus import check_apart
from .calibration.sample import Calibration
from .calibration.tasks import Examples, Labelled
from .errors import CorpusError, LoadError, RecipeError
from .files import fingerprint
from .recipe import build, plain

__all__ = ["Seen"]

_FILE = "seen.json"
_BY_CHANCE = 0.1  # of a split's examples, beside those that its own training split has too: a corpus has some twice


@dataclass(frozen=True)
class Seen:
    """Of all trainings, one after the other."""

    examples: frozenset[str] = frozenset()  # of tasks, by hashes of their texts
    texts: tuple[Mapping[str, Any], ...] = ()  # as calibration, in plain data

    @classmethod
    def of(cls, source: str) -> "Seen":
        """By a model; nothing where its folder says nothing. Raises LoadError."""
        file = Path(source).expanduser() / _FILE
        if not file.is_file():
            return cls()
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            found = cls(frozenset(map(str, data["examples"])), tuple(data["texts"]))
            found._calibrations()
        except (ValueError, KeyError, TypeError, RecipeError) as error:
            raise LoadError(f"{file}: is damaged ({type(error).__name__}: {error}). Train the model again.") from None
        return found

    def and_of(self, read: Labelled | None, text: Calibration) -> "Seen":
        """After a training on a task, or where there is none on text."""
        if read:
            return replace(self, examples=self.examples | set(_hashes(read.train)))
        return replace(self, texts=(*self.texts, plain(text)))

    def write(self, folder: Path) -> None:
        """Beside the weights."""
        (folder / _FILE).write_text(json.dumps({"examples": sorted(self.examples), "texts": list(self.texts)}) + "\n", encoding="utf-8")

    def check(self, read: Labelled | None, text: Calibration) -> None:
        """Refuse to value a model on the splits of a task, or where there is none on a text, that it was trained on. Raises RecipeError
        and CorpusError."""
        twice = set(_hashes(read.train)) if read and self.examples else set()
        for split in (read.validation, read.test) if read and self.examples else ():
            hashes = _hashes(split)
            seen, own = (sum(one in known for one in hashes) / len(hashes) for known in (self.examples, twice))
            if seen > own + _BY_CHANCE:
                raise RecipeError(f"task '{split.name}': the model was trained on {seen:.0%} of its {split.split} split. Name the seed, "
                                  "rows and file that it was trained with (--task …,seed=…), or train again.")
        for trained in () if read else self._calibrations():
            try:
                known = trained.text()
            except CorpusError:  # it is not there any more
                continue
            check_apart("training", known, "search", text.text())

    def _calibrations(self) -> tuple[Calibration, ...]:
        return tuple(build(Calibration, item, _FILE) for item in self.texts)


def _hashes(split: Examples) -> list[str]:
    return [fingerprint(*(text.strip() for text in texts)) for texts in split.texts]
