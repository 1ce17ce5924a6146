"""The report as JSON, for programs: every field, numbers in full, examples of tasks too."""

import json
from dataclasses import asdict
from typing import Any

from ..report.json import standard
from .content import compared_page
from .page import Chart, Page, Table
from .values import Compared

__all__ = ["as_json", "tables_of"]


def as_json(found: Compared) -> str:
    """The whole file."""
    data = asdict(found)
    for row, model in zip(data["models"], found.models, strict=True):
        row["matrices"] = [{**asdict(matrix), "sparsity": matrix.sparsity} for matrix in model.matrices]
    data["comparisons"] = found.comparisons
    data["tables"] = tables_of(compared_page(found))
    return json.dumps(standard(data), indent=1, ensure_ascii=False) + "\n"


def tables_of(page: Page) -> list[dict[str, Any]]:
    """The tables as the other forms show them."""
    tables = [(section.title, part.table if isinstance(part, Chart) else part) for section in page.sections for part in section.parts
              if isinstance(part, Chart | Table)]
    return [{"section": title, "caption": table.caption, "head": list(table.head),
             "rows": [["; ".join([cell.text, *cell.notes]) for cell in row] for _, rows in table.groups for row in rows]}
            for title, table in tables]
