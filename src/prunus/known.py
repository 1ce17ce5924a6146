"""The dense model beside what is known of it: a value from another protocol is refused, one that is off is told."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .comparison import bare, difference_of
from .errors import ComparisonError
from .evaluation import Measurement

__all__ = ["Known", "Sanity", "checked", "read_known"]

_OFF = 0.01  # of the known value: on the same text only rounding, far below that, may differ from machine to machine


@dataclass(frozen=True)
class Known:
    """A value of the dense model that somebody measured before."""

    value: float
    protocol: str  # all of it, as reports print it
    source: str  # where it is from


@dataclass(frozen=True)
class Sanity:
    """A measured value of the dense model beside a known one of the same protocol."""

    label: str
    value: float
    known: float
    source: str
    units: float  # the difference, in standard errors of the measured value over its windows or examples; for losses, of their mean

    @property
    def off(self) -> bool:
        """Whether they differ by more than a hundredth."""
        return not abs(self.value - self.known) <= _OFF * abs(self.known)

    def __str__(self) -> str:
        beside = f"the dense model's {self.label} is {self.value:.4f}, and {self.known:.4f} in {self.source}"
        if not self.off:
            return f"As known: {beside}."
        return (f"Not as known: {beside}, which is {self.units:+.2g} standard errors away. By the same protocol the same model gives the "
                "same value but for rounding: look at the weights, the dtype and the versions before you believe what is measured here.")


def read_known(file: Path) -> tuple[Known, ...]:
    """Values from a JSON file: a report.json, of which the dense model's are taken, what `prunus evaluate --json` prints, or
    {"value": …, "protocol": "…"}, one or a list. Raises ComparisonError."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ComparisonError(f"known values {file}: cannot be read as JSON: {error}") from None
    source = file.name
    if isinstance(data, dict) and "before" in data:
        source, data = f"{source} of {data.get('environment', {}).get('model', 'an earlier run')}", data["before"]
    rows = data if isinstance(data, list) else [data]
    if not rows:
        raise ComparisonError(f"known values {file}: there is none. Expected objects with a \"value\" and a \"protocol\".")
    return tuple(_known(row, file, place, source) for place, row in enumerate(rows))


def _known(row: Any, file: Path, place: int, source: str) -> Known:
    value, protocol = (row.get(key) for key in ("value", "protocol")) if isinstance(row, dict) else (None, None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not isinstance(protocol, str):
        raise ComparisonError(f"known values {file}: entry {place + 1} has no finite \"value\" with a \"protocol\". Expected both, as in a "
                              "report.json.")
    return Known(float(value), protocol, source)


def checked(measured: Sequence[Measurement], known: Sequence[Known]) -> tuple[Sanity, ...]:
    """What was measured of the dense model beside what is known. Raises ComparisonError where a known value has another protocol, or is
    of nothing that was measured."""
    found, strangers = [], []
    for item in known:
        if sum(bare(other.protocol) == bare(item.protocol) for other in known) > 1:
            raise ComparisonError(f"known values: {item.source} has several of one protocol ({item.protocol.split(',')[0]}). Leave "
                                  "those of the dense model.")
        same = next((one for one in measured if bare(one.protocol) == bare(item.protocol)), None)
        alike = next((one for one in measured if one.label == item.protocol.split(",")[0]), None)
        if same:
            found.append(Sanity(same.label, same.value, item.value, item.source, _units(same, item.value)))
        elif alike:
            theirs, ours = difference_of(bare(item.protocol), bare(alike.protocol)) or ("", "")
            raise ComparisonError(f"known values: that of {alike.label} in {item.source} has another protocol: '{theirs}', and here it is "
                                  f"'{ours}'. Measure in the same way, or leave it out.")
        else:
            strangers.append(item.protocol.split(",")[0])
    if known and not found:
        raise ComparisonError(f"known values: {known[0].source} has {', '.join(strangers)}, and here is measured "
                              f"{', '.join(one.label for one in measured) or 'nothing'}. Name a file with values of the same.")
    return tuple(found)


def _units(measured: Measurement, known: float) -> float:
    if len(measured.parts) < 2:
        return math.nan
    error = statistics.stdev(measured.parts) / math.sqrt(len(measured.parts))
    difference = measured.value - known
    if measured.kind == "losses":  # the value is exp of their mean
        difference = math.log(measured.value / known) if measured.value > 0 < known else math.nan
    return difference / error if error else math.nan
