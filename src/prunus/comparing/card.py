"""A model card for the hub, one for every pruned model: its numbers beside the dense model's."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .content import lead_of, main_table, protocol_lines
from .markdown import escaped, quoted, table_lines
from .values import Compared, Contender, Row

__all__ = ["cards"]


def cards(found: Compared) -> dict[str, str]:
    """File name to text."""
    names = [re.sub(r"[^\w.-]+", "-", model.name).strip("-") for model in found.pruned]
    return {f"MODEL_CARD-{name if names.count(name) == 1 else f'{name}-{place}'}.md": _card(found, place)
            for place, name in enumerate(names, 1)}


def _card(found: Compared, place: int) -> str:
    """Only this model and the dense one."""
    model = found.models[place]
    pair = replace(found, models=(found.dense, model), rows=tuple(_only(row, place) for row in found.rows))
    lead = [line for line in lead_of(pair) if not line.startswith("Note: ")]
    others = tuple(f"{other.name} " for other in found.pruned if other is not model)
    flags = [flag for flag in found.flags if not flag.startswith(others)]
    made = ["## How it was made", f"```\n{model.made.command}\n```"] if model.made and model.made.command else []
    blocks = [f"---\n{_front(found, model, place)}\n---", f"# {escaped(model.name)}",
              *(["\n>\n".join(map(quoted, flags))] if flags else []), *map(escaped, lead),
              "## Beside the dense model", table_lines(main_table(pair)),
              "In brackets: 95 % intervals; of speed, the least and the most of all rounds. ≈ means that this does not show a difference.",
              *made, "## Protocols", *map(escaped, protocol_lines(pair.rows)), "## Measured by", f"```\n{found.command}\n```"]
    return "\n\n".join(blocks) + "\n"


def _only(row: Row, place: int) -> Row:
    """With one pruned model there is no best of them."""
    kept = row.entries[place]
    return replace(row, entries=(row.entries[0], None if kept is None else replace(kept, best=False)))


def _front(found: Compared, model: Contender, place: int) -> str:
    """YAML as the hub reads it; every value is written as JSON, which is YAML too."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- prunus", "- pruned"]
    if _on_hub(found.dense.source):
        lines.append(f"base_model: {json.dumps(found.dense.source)}")
    results = list(_results(found, place))
    if results:
        lines += ["model-index:", f"- name: {json.dumps(model.name)}", "  results:", *results]
    return "\n".join(lines)


def _on_hub(source: str) -> bool:
    return not Path(source).exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None


def _results(found: Compared, place: int) -> Iterator[str]:
    for row in found.rows:
        entry = row.entries[place]
        if row.group not in ("Texts", "Tasks") or entry is None or entry.value != entry.value:
            continue
        data, _, metric = row.label.partition(" ")
        yield "  - task:\n      type: text-generation"
        yield f"    dataset:\n      name: {json.dumps(data)}\n      type: {json.dumps(data)}"
        yield f"    metrics:\n    - type: {json.dumps(row.unit if row.unit == 'perplexity' else metric or row.unit)}"
        yield f"      value: {entry.value:.6g}\n      name: {json.dumps(row.label)}"
