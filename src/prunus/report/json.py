"""The whole report as JSON, for programs."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..recipe import plain
from ..result import Report

__all__ = ["JSON"]


@dataclass(frozen=True)
class JSON:
    """Every field of the report; numbers in full."""

    indent: int = 2  # spaces per level

    def render(self, report: Report) -> str:
        return json.dumps(data_of(report), indent=self.indent, ensure_ascii=False) + "\n"


def data_of(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    data = {name: getattr(report, name) for name in report.__dataclass_fields__}
    data["recipe"] = plain(report.recipe)
    data["allocation"] = [dict(allocation) for allocation in report.allocation]
    data["cost"] = asdict(report.cost)
    for name in ("sites", "before", "after", "searches"):
        data[name] = [asdict(item) for item in data[name]]
    data["overlaps"] = [{**asdict(item), "share": item.share} for item in report.overlaps]
    data["sanity"] = [{**asdict(item), "off": item.off} for item in report.sanity]
    data["matrices"] = [{**asdict(item), "sparsity": item.sparsity} for item in report.matrices]
    finite: dict[str, Any] = standard(data)
    return finite


def standard(value: Any) -> Any:
    """Plain data with numbers that JSON does not have (infinite, or none at all) as strings."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case list() | tuple():
            return [standard(item) for item in value]
        case Mapping():
            return {key: standard(item) for key, item in value.items()}
        case _:
            return value
