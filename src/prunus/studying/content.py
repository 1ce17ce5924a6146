"""What the report of a study says, as a page in the look of a comparison's, and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..comparing.content import figure, known, logarithmic, millions, some
from ..comparing.data import tables_of
from ..comparing.drawing import lines
from ..comparing.markdown import as_markdown
from ..comparing.page import Cell, Chart, Code, Page, Part, Section, Table, Text, aligned
from ..comparing.values import MEAN
from ..comparing.web import as_html
from ..evaluation import protocols_of
from ..files import put_texts
from ..recipe import plain
from ..report.json import standard
from .gathered import Costs, Gathered, Rows
from .numbers import Against, Entry, Number
from .plan import Treatment

__all__ = ["as_json", "lead_of", "printed", "studied_page", "write"]

_LEGEND = ("Mean ± deviation over seeds. Bold: the best of the recipes that were asked to remove the same, and those that cannot be told "
           "from it. Below: beside the dense model, and beside the baseline; better or worse is said only where the tests allow it (p < "
           "0.05 after Holm's correction), and ≈ means that this does not show a difference. Error as solved: of the outputs of matrices "
           "beside those of the dense ones, on the inputs they were solved for, relative, squared; a mean over matrices, before what "
           "follows the solver.")
_TESTS = ("Recipes are tested only against recipes that were asked to remove the same. Two tests must agree: over windows or examples, of "
          "which each has its mean over seeds (random signs; McNemar's where all are right or wrong), and, where seeds decide something, "
          "Student's paired test over seeds; p is the larger one. Within each number, p-values are corrected for all recipes against the "
          "baseline, and for all pairs (Holm). Over the numbers they are not: of 20 numbers by which equal recipes are compared, one shows "
          "a difference by chance.")


def studied_page(found: Gathered, source: str = "") -> Page:
    """All of it; `source` is the text of the study's file."""
    sections = [Section("Results", (*(_results(found, rows) for rows in found.models), Text(_LEGEND))), _verdicts(found), _charts(found),
                _failed(found), _costs(found), _protocols(found), _again(found, source)]
    return Page(found.study.title, found.flags, lead_of(found), tuple(section for section in sections if section is not None))


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def lead_of(found: Gathered) -> tuple[str, ...]:
    """What was studied, how much of it is there, and what a reader should know."""
    study = found.study
    there = sum(sum(rows.seeds.values()) for rows in found.models)
    looked = [some(len(names), word) for names, word in ((study.metrics.corpora, "text"), (study.metrics.tasks, "task")) if names]
    first = (f"{some(len(study.recipes), 'recipe')} with {some(len(study.seeds), 'seed')} on "
             f"{', '.join(model.name for model in study.models)}, measured in the same way on {' and '.join(looked)}.")
    left = [f"{some(there, 'cell')} {_are(there)} here."]
    left += [f"{some(len(found.failed), 'cell')} failed."] if found.failed else []
    left += [f"{some(found.missing, 'cell')} {_are(found.missing)} missing: what is said here may change."] if found.missing else []
    return (first, " ".join(left), *(f"Note: {note}" for note in found.notes))


def _results(found: Gathered, rows: Rows) -> Table:
    """Recipes by what they were asked to remove; the dense model first."""
    head = ("", *(f"{number.label}, {number.better} is better" for number in rows.numbers), "error as solved",
            "sparsity, counted", "parameters")
    dense = (Cell(f"{rows.model.name} (dense)"), *(_dense(number) for number in rows.numbers), *_reached(rows, ""))
    groups: list[tuple[str, tuple[tuple[Cell, ...], ...]]] = [("", (dense,))]
    for level in dict.fromkeys(one.level for one in found.study.recipes):
        lines_of = [_line(found, rows, place, one) for place, one in enumerate(found.study.recipes) if one.level == level]
        groups.append((f"{level[0].upper()}{level[1:]}", tuple(lines_of)))
    return Table(rows.model.name, head, tuple(groups))


def _dense(number: Number) -> Cell:
    return Cell("not known" if number.dense is None else figure(number.dense.value, number.unit))


def _reached(rows: Rows, name: str) -> tuple[Cell, ...]:
    found = rows.reached.get(name)
    if found is None:
        return (Cell("–"),) * 3
    return known(found.error, 4), Cell(f"{found.sparsity:.4f}"), Cell(millions(found.parameters))


def _line(found: Gathered, rows: Rows, place: int, one: Treatment) -> tuple[Cell, ...]:
    asked, there = 1 if one.fixed else len(found.study.seeds), rows.seeds[one.name]
    notes = (f"{there} of {some(asked, 'seed')}",) if 0 < there < asked else ()
    if not there:
        return (Cell(one.name), *(Cell("not there") for _ in rows.numbers), *_reached(rows, one.name))
    return (Cell(one.name, notes), *(_cell(number, number.entries[place]) for number in rows.numbers), *_reached(rows, one.name))


def _cell(number: Number, entry: Entry) -> Cell:
    series = entry.series
    text = figure(series.mean, number.unit)
    if not math.isnan(series.deviation):
        text = f"{text} ± {figure(series.deviation, number.unit)}"
    notes = [_beside(number, series.mean)] if number.dense is not None and math.isfinite(series.mean) else []
    notes += [_against(entry.against)] if entry.against and entry.against.p is not None else []
    return Cell(text, tuple(note for note in notes if note), entry.best)


def _beside(number: Number, mean: float) -> str:
    if number.dense is None or "with dense" in number.label or "from dense" in number.label:
        return ""
    value = number.dense.value
    return f"× {mean / value:.3f}" if number.dense.kind == "losses" else f"{mean - value:+.4f}"


def _against(against: Against) -> str:
    words = {"better": "better than", "worse": "worse than", "open": "≈"}
    return f"{words[against.said]} {against.baseline}"


def _verdicts(found: Gathered) -> Section | None:
    groups = []
    for rows in found.models:
        said = tuple((Cell(number.label, (level.name, some(level.comparisons, "test"))), Cell(level.verdict))
                     for number in rows.numbers for level in number.levels)
        groups += [(rows.model.name if len(found.models) > 1 else "", said)] if said else []
    if not groups:
        return None
    return Section("What can be said", (Table("What the tests allow to say of every number", ("", "verdict"), tuple(groups)), Text(_TESTS)))


def _charts(found: Gathered) -> Section | None:
    """Quality against sparsity, a line for every method."""
    drawn: list[Chart | None] = []
    for rows in found.models:
        perplexity = [number for number in rows.numbers if number.unit == "perplexity"][:1]
        tasks = [number for number in rows.numbers if number.dense is not None and number.dense.examples and number.unit == "share"]
        mean = [number for number in rows.numbers if number.label.startswith(MEAN)]
        for number in (*perplexity, *(mean or tasks[:1])):
            drawn.append(_chart(found, rows, len(drawn), number))
    there = tuple(chart for chart in drawn if chart is not None)
    return Section("Quality against sparsity", there) if there else None


def _chart(found: Gathered, rows: Rows, index: int, number: Number) -> Chart | None:
    label, better = number.label, number.better
    series: dict[str, list[tuple[float, float]]] = {}
    if number.dense is not None:
        series["dense"] = [(rows.reached[""].sparsity, number.dense.value)]
    for place, one in enumerate(found.study.recipes):
        if rows.seeds[one.name]:
            series.setdefault(one.line, []).append((rows.reached[one.name].sparsity, number.entries[place].series.mean))
    series = {name: sorted(pair for pair in pairs if math.isfinite(pair[1])) for name, pairs in series.items()}
    series = {name: pairs for name, pairs in series.items() if pairs}
    every = [value for pairs in series.values() for _, value in pairs]
    if len(every) < 2:
        return None
    title = f"{rows.model.name}: {label} against sparsity"
    told = (f"{label} ({better} is better), mean over seeds, against the sparsity that was counted in the weights. " + " ".join(
        f"{name}: {', '.join(f'{value:.4g} at {share:.3f}' for share, value in pairs)}." for name, pairs in series.items()))
    table = Table(title, ("", "sparsity", label),
                  (("", tuple((Cell(name), Cell(f"{share:.4f}"), Cell(f"{value:.4g}")) for name, pairs in series.items()
                              for share, value in pairs)),))
    svg = lines(f"study-{index}", title, told, series, range(len(series)), "sparsity", label, whole=False, log=logarithmic(every, better))
    return Chart(title, told, svg, table)


def _failed(found: Gathered) -> Section | None:
    if not found.failed:
        return None
    rows = tuple((Cell(name), Cell(line)) for name, line in found.failed.items())
    return Section("Failed cells", (Table("What went wrong", ("", "error"), (("", rows),)), Text("The same command tries them again.")))


def _costs(found: Gathered) -> Section:
    head = ("", "pruning, seconds", "of processors", "tokens forwarded", "peak memory, MiB", "energy, J", "measuring, seconds")
    groups = []
    for rows in found.models:
        names = {"": f"{rows.model.name} (dense)", **{one.name: one.name for one in found.study.recipes}}
        groups.append((rows.model.name if len(found.models) > 1 else "",
                       tuple((Cell(name), *_cost(rows.costs[key])) for key, name in names.items() if key in rows.costs)))
    machines = "; ".join([*found.machines, *(f"{name} {value}" for name, value in found.versions.items())])
    return Section("Cost", (Table("What a cell took, mean ± deviation over seeds; of memory the most", head, tuple(groups)),
                            *([Text(f"{machines}.")] if machines else [])), opened=False)


def _cost(costs: Costs) -> tuple[Cell, ...]:
    seconds = known(costs.seconds, 1)
    if costs.deviation is not None:
        seconds = Cell(f"{seconds.text} ± {costs.deviation:,.1f}")
    memory = None if costs.host_bytes is None else costs.host_bytes / 2**20
    return seconds, known(costs.processor, 1), known(costs.tokens, 0), known(memory, 0), known(costs.joules, 0), known(costs.measuring, 1)


def _protocols(found: Gathered) -> Section:
    lines_of: dict[str, None] = {}
    for rows in found.models:
        lines_of |= dict.fromkeys(protocols_of((number.label, number.protocol) for number in rows.numbers))
    return Section("Protocols", tuple(map(Text, lines_of)), opened=False)


def _again(found: Gathered, source: str) -> Section:
    parts: tuple[Part, ...] = (Text("The study:"), Code(source.strip())) if source else ()
    return Section("Reproduce", (Code(found.command), *parts))


def as_json(found: Gathered, page: Page) -> str:
    """For programs: numbers in full, by seed, and the tables as the other forms show them."""
    study = {**asdict(found.study), "recipes": [
        {"name": one.name, "method": one.method, "level": one.level, "recipe": plain(one.recipe)} for one in found.study.recipes]}
    data = {"study": study, "models": [_model(rows) for rows in found.models], "flags": found.flags, "notes": found.notes,
            "failed": found.failed, "missing": found.missing, "machines": found.machines, "versions": found.versions,
            "command": found.command, "tables": tables_of(page)}
    return json.dumps(standard(data), indent=1, ensure_ascii=False) + "\n"


def _model(rows: Rows) -> dict[str, Any]:
    return {"name": rows.model.name, "source": rows.model.source, "cells": rows.seeds,
            "reached": {name or "dense": asdict(each) for name, each in rows.reached.items()},
            "costs": {name or "dense": asdict(each) for name, each in rows.costs.items()},
            "numbers": [{"label": number.label, "unit": number.unit, "better": number.better, "protocol": number.protocol,
                         "dense": None if number.dense is None else number.dense.value, "levels": list(map(asdict, number.levels)),
                         "recipes": {entry.series.name: _entry(entry) for entry in number.entries}} for number in rows.numbers]}


def _entry(entry: Entry) -> dict[str, Any]:
    return {"level": entry.series.level, "values": {str(seed): item.value for seed, item in entry.series.seeds.items()},
            "mean": entry.series.mean, "deviation": entry.series.deviation, "best": entry.best,
            "against": None if entry.against is None else asdict(entry.against)}


def write(found: Gathered, out: Path, source: str = "") -> tuple[Path, ...]:
    """The report in its three forms. Raises ExportError."""
    page = studied_page(found, source)
    files = {"study.html": as_html(page), "study.md": as_markdown(page), "study.json": as_json(found, page)}
    return put_texts(out, files)


def printed(found: Gathered) -> Sequence[str]:
    """The tables of results in short, for a terminal."""
    said: list[str] = []
    for rows in found.models:
        table = _results(found, rows)
        shown = [[name.partition(", ")[0] for name in table.head], *([first.text, *("* " * cell.best + cell.text for cell in cells)]
                                     for _, group in table.groups for first, *cells in group)]
        said += aligned(shown)
    return said
