"""Measurements on disk, so that none is made twice: each in a file of its own, named by a hash of all that decides it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..evaluation import Example, Measurement
from ..files import fingerprint, intact, keep_tensors, put_text, readable
from ..targets import Predicted, packed, unpacked

__all__ = ["Kept", "measurement_of"]

_FORM = 2  # of the files; those of another one are measured again
_LARGEST = 2**28  # bytes of predictions that are kept


@dataclass(frozen=True)
class Kept:
    """A folder with one JSON file per measurement, in which stands again what it is of."""

    folder: Path

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether this was measured already."""
        return self.recall(identity) is not None

    def asked(self, identity: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """What was measured, as plain data with JSON's types: from the folder where it is there, else measured now and kept."""
        found = self.recall(identity)
        return self.keep(identity, measure()) if found is None else found

    def recall(self, identity: Mapping[str, Any]) -> Any:
        """The same, or None. A file whose identity is another one, in whatever detail, is not taken."""
        found = readable(self._file(identity))
        same = isinstance(found, dict) and found.get("form") == _FORM and found.get("identity") == json.loads(json.dumps(identity))
        return found.get("result") if same else None

    def keep(self, identity: Mapping[str, Any], result: Any) -> Any:
        """Write it, and give it back as it will be read."""
        plain = json.loads(json.dumps(_plain(result)))
        self.folder.mkdir(parents=True, exist_ok=True)
        put_text(self._file(identity), json.dumps({"form": _FORM, "identity": identity, "result": plain}, ensure_ascii=False))
        return plain

    def keep_predictions(self, identity: Mapping[str, Any], key: str, how: str, predicted: Sequence[Sequence[Predicted]]) -> None:
        """The dense model's, for models that come later, unless they are very many; `key` and `how` are the metric's."""
        tensors = packed(dict(enumerate(predicted)))
        if sum(tensor.nbytes for tensor in tensors.values()) <= _LARGEST:
            keep_tensors(self._tensors(identity), tensors, form=_FORM, identity=json.loads(json.dumps(identity)), key=key, how=how)

    def predictions(self, identity: Mapping[str, Any], device: str) -> tuple[str, str, list[list[Predicted]]] | None:
        """What was kept so; None where there is none, or the file is not whole."""
        file = self._tensors(identity)
        note = intact(file)
        if note is None or note.get("form") != _FORM or note.get("identity") != json.loads(json.dumps(identity)):
            return None
        found = unpacked(file, torch.device(device))
        return note["key"], note["how"], [found[window] for window in sorted(found)]

    def _file(self, identity: Mapping[str, Any]) -> Path:
        return self.folder / f"{identity['part']}-{fingerprint(json.dumps(identity, sort_keys=True))}.json"

    def _tensors(self, identity: Mapping[str, Any]) -> Path:
        return self._file({**identity, "part": "predictions"}).with_suffix(".safetensors")


def _plain(value: Any) -> Any:
    """Measurements as tables; Python's JSON has words for infinity and for what is no number."""
    match value:
        case Measurement():
            return asdict(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case _:
            return value


def measurement_of(row: Mapping[str, Any]) -> Measurement:
    """A measurement from what was kept of it."""
    examples = tuple(Example(**{**given, "likelihoods": tuple(given["likelihoods"])}) for given in row["examples"])
    return Measurement(**{**row, "parts": tuple(row["parts"]), "draws": tuple(row["draws"]), "examples": examples})
