"""The whole report as JSON, for programs."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..recipe import plain
from ..result import Report

__all__ = ["JSON"]


@dataclass(frozen=True)
class JSON:
    """Every field of the report; numbers in full."""

    indent: int = 2

    def render(self, report: Report) -> str:
        return json.dumps(data_of(report), indent=self.indent, ensure_ascii=False) + "\n"


def data_of(report: Report) -> dict[str, Any]:
    """The report as plain data; infinite numbers as strings, since JSON has none."""
    data = {name: getattr(report, name) for name in report.__dataclass_fields__}
    data["recipe"] = plain(report.recipe)
    data["allocation"] = [dict(allocation) for allocation in report.allocation]
    for name in ("sites", "before", "after"):
        data[name] = [_finite(asdict(item)) for item in data[name]]
    return data


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    infinite = (float("inf"), float("-inf"))
    return {key: str(value) if value in infinite else value for key, value in row.items()}
