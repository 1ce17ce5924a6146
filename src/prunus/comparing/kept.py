"""Measurements on disk, so that none is made twice: each in a file of its own, named by a hash of all that decides it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..evaluation import Example, Measurement
from ..files import fingerprint, put_text, readable

__all__ = ["Kept", "measurement_of"]


@dataclass(frozen=True)
class Kept:
    """A folder with one JSON file per measurement, in which stands again what it is of."""

    folder: Path

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether this was measured already."""
        return self._read(identity) is not None

    def asked(self, identity: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """What was measured, as plain data with JSON's types: from the folder where it is there, else measured now and kept.

        A file whose identity is another one, in whatever detail, is not taken; it is written anew.
        """
        found = self._read(identity)
        if found is not None:
            return found["result"]
        result = json.loads(json.dumps(_plain(measure())))
        self.folder.mkdir(parents=True, exist_ok=True)
        put_text(self._file(identity), json.dumps({"identity": identity, "result": result}, ensure_ascii=False))
        return result

    def _read(self, identity: Mapping[str, Any]) -> Any:
        found = readable(self._file(identity))
        same = isinstance(found, dict) and found.get("identity") == json.loads(json.dumps(identity)) and "result" in found
        return found if same else None

    def _file(self, identity: Mapping[str, Any]) -> Path:
        return self.folder / f"{identity['part']}-{fingerprint(json.dumps(identity, sort_keys=True))}.json"


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
