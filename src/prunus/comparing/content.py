"""What the report of a comparison says, in which order."""

import difflib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..evaluation import protocols_of
from ..figures import place
from ..search.pareto import front
from .drawing import Point, heat, lines, scatter
from .page import Cell, Chart, Code, Page, Section, Table, Text
from .values import MEAN, Beside, Compared, Contender, Entry, Made, Row, Spent

__all__ = ["compared_page", "figure", "known", "lead_of", "logarithmic", "main_table", "millions", "protocol_lines", "shown", "some",
           "words_of"]

_NOTHING = Made("", (), None, None, None, None)
_LOG = 10.0  # from which ratio of the largest to the least on an axis is logarithmic


def compared_page(found: Compared) -> Page:
    """All of it."""
    sections = [Section("Results", (main_table(found), Text(_LEGEND))), _verdicts(found), _plots(found), _allocations(found),
                _errors(found), _answers(found), _overlaps(found), _costs(found), _protocols(found), _again(found)]
    title = f"{found.dense.name} and {len(found.pruned)} pruned model{'s' * (len(found.pruned) > 1)}"
    return Page(title, found.flags, lead_of(found), tuple(section for section in sections if section is not None))


_LEGEND = ("Bold: the best of the pruned models, and those that cannot be told from it. In brackets: 95 % intervals; of speed, the least "
           "and the most of all rounds. The last line of a cell is the number beside the dense model's, on the same windows, examples or "
           "rounds in pairs; better or worse is said only where the test allows it (p < 0.05 after Holm's correction; of what has no test, "
           "where the interval does), and ≈ means that this does not show a difference.")


def lead_of(found: Compared) -> tuple[str, ...]:
    """A sentence on what was compared, one on each pruned model, and what a reader should know."""
    looked = [some(len(names), word) for names, word in ((found.asked.corpora, "text"), (found.asked.tasks, "task")) if names]
    measured = sum(row.group in ("Texts", "Tasks") for row in found.rows)
    size = found.dense.parameters
    first = (f"{found.dense.name} is the dense model, with {f'{size / 1e6:,.1f} million' if size >= 1e6 else f'{size:,}'} parameters"
             f"{_stored(found.dense)}. All models were measured in the same way: {some(measured, 'number')} on {' and '.join(looked)}.")
    others = [f"{model.name}: {_gone(model, found.dense)}{_counts(found.rows, index)}." for index, model in enumerate(found.pruned, 1)]
    return (first, *others, *(f"Note: {note}" for note in found.notes))


def some(count: int, word: str) -> str:
    """So many of them, in words."""
    return f"{count} {word}{'s' * (count != 1)}"


def _gone(model: Contender, dense: Contender) -> str:
    sparsity = "" if model.sparsity is None else f"{model.sparsity:.1%} of the block weights are zero or gone; "
    return f"{sparsity}{model.parameters / dense.parameters:.1%} of the parameters are left{_stored(model)}"


def _stored(model: Contender) -> str:
    return f"; its weights are stored as {model.stored}" if model.stored else ""


def _counts(rows: Sequence[Row], index: int) -> str:
    """Of the numbers that are measured, how many are better and worse."""
    places = [row.entries[index] for row in rows if row.group in ("Texts", "Tasks")]
    said = [entry.beside.said for entry in places if entry and entry.beside]
    worse, better, unclear = (said.count(word) for word in ("worse", "better", "open"))
    return (f"; of {some(len(said), 'number')} beside the dense model's {worse} worse, {better} better, {unclear} not to be told apart"
            if said else "")


def main_table(found: Compared) -> Table:
    """Every number of every model."""
    groups = []
    for group in dict.fromkeys(row.group for row in found.rows):
        groups.append((group, tuple(_line(row) for row in found.rows if row.group == group)))
    head = ("", f"{found.dense.name} (dense)", *(model.name for model in found.pruned))
    return Table("All models beside the dense one", head, tuple(groups))


def _line(row: Row) -> tuple[Cell, ...]:
    told = [row.unit if row.unit not in row.label else "", f"{row.better} is better" if row.better else ""]
    notes = tuple(word for word in told if word)
    return (Cell(row.label, notes[:1] if len(notes) < 2 else (", ".join(notes),)), *(_cell(entry, row) for entry in row.entries))


def _cell(entry: Entry | None, row: Row) -> Cell:
    if entry is None:
        return Cell("not known")
    notes = [] if entry.interval is None else ["[{}, {}]".format(*(shown(value, row) for value in entry.interval))]
    notes += [] if entry.beside is None else [_beside(entry.beside, row)]
    return Cell(shown(entry.value, row), tuple(notes), entry.best)


def _beside(beside: Beside, row: Row) -> str:
    words = {"better": "better", "worse": "worse", "open": "≈"}
    low, high = beside.interval
    if beside.word == "difference":
        return f"{beside.value:+.4f} [{low:+.4f}, {high:+.4f}] {words[beside.said]}"
    brackets = "" if row.group == "Size" else f" [{low:.3f}, {high:.3f}] {words[beside.said]}"
    return f"× {beside.value:.3f}{brackets}"


def shown(value: float, row: Row) -> str:
    """A number as its row shows it."""
    if not math.isfinite(value):
        return "infinite" if math.isinf(value) else "no number"
    if row.label == "parameters":
        return millions(value)
    if row.group in ("Speed", "Size") and row.unit != "share":
        return f"{value:,.1f}"
    return figure(value, row.unit)


def millions(parameters: float) -> str:
    """A number of parameters."""
    return f"{parameters / 1e6:,.2f} M" if parameters >= 1e5 else f"{parameters:,.0f}"


def figure(value: float, unit: str) -> str:
    """A number that was measured on texts or tasks, as tables show it."""
    if not math.isfinite(value):
        return "infinite" if math.isinf(value) else "no number"
    if unit == "perplexity":
        return f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"
    return f"{value:.4f}"


def _verdicts(found: Compared) -> Section | None:
    rows = tuple((Cell(row.label, (some(row.comparisons, "test") if row.comparisons else "no test",)), Cell(row.verdict))
                 for row in found.rows if row.verdict)
    if not rows:
        return None
    numbers = sum(row.comparisons > 0 for row in found.rows)
    told = (f"{some(found.comparisons, 'test')} were made, for {some(numbers, 'number')}. Within each number, p-values are corrected for "
            "all its tests against the dense model, and for all between pruned models (Holm). Over the numbers they are not: of 20 numbers "
            "by which equal models are compared, one shows a difference by chance. A number without a test is judged by its interval: "
            "it is no mean over windows or examples, or was timed, where better and worse is what every round says.")
    return Section("What can be said", (Table("What the tests allow to say of every number", ("", "verdict"), (("", rows),)), Text(told)))


def _plots(found: Compared) -> Section | None:
    """Quality against parameters and against speed."""
    qualities = [row for row in found.rows if row.unit == "perplexity" and row.group == "Texts"][:1]
    tasks = [row for row in found.rows if row.group == "Tasks" and row.unit == "share"]
    costs = [row for label in ("parameters", "tokens written per second") for row in found.rows if row.label == label]
    mean = [row for row in tasks if row.label.startswith(MEAN)]
    pairs = [(quality, cost) for quality in (*qualities, *(mean or tasks[:1])) for cost in costs]
    charts = [_plot(found, index, quality, cost) for index, (quality, cost) in enumerate(pairs)]
    drawn = tuple(chart for chart in charts if chart is not None)
    return Section("Quality against size and speed", drawn) if drawn else None


def _values(row: Row) -> list[float]:
    return [math.nan if entry is None else entry.value for entry in row.entries]


def _plot(found: Compared, index: int, quality: Row, cost: Row) -> Chart | None:
    label, better, ups = quality.label, quality.better, _values(quality)
    scale = 1e6 if cost.label == "parameters" and found.dense.parameters >= 1e5 else 1.0
    across = "million parameters" if scale > 1 else cost.label
    crosses = [value / scale for value in _values(cost)]
    there = [place for place in range(len(ups)) if math.isfinite(ups[place]) and math.isfinite(crosses[place])]
    if len(there) < 2:
        return None
    signed = [[crosses[place] * (1 if cost.better == "lower" else -1), ups[place] * (1 if better == "lower" else -1)] for place in there]
    best = {there[each] for each in front(signed).tolist()}
    points = [Point(found.models[place].name, crosses[place], ups[place], place in best, place == 0) for place in there]
    log = logarithmic([point.y for point in points], better)
    names = ", ".join(point.name for point in points if point.on_front)
    told = f"{label} ({better} is better) against {across} ({cost.better} is better). On the front: {names}."
    rows = tuple((Cell(point.name), Cell(f"{point.x:,.4g}"), Cell(f"{point.y:.4g}"), Cell("yes" if point.on_front else "no"))
                 for point in points)
    table = Table(f"{label} against {across}", ("", across, label, "on the front"), (("", rows),))
    title = f"{label} against {across}"
    return Chart(title, told, scatter(f"plot-{index}", title, told, points, across, label, log=log), table)


def logarithmic(values: Sequence[float], better: str) -> bool:
    """Whether values on an axis are so far apart that it says more in logarithms."""
    return better == "lower" and max(values) > _LOG * min(values) > 0


def _allocations(found: Compared) -> Section | None:
    charts = [_map(index, model, found.dense) for index, model in enumerate(found.pruned)]
    there = tuple(chart for chart in charts if chart is not None)
    return Section("How much each matrix gave", there) if there else None


def _map(index: int, model: Contender, dense: Contender) -> Chart | None:
    """Counted in the weights, block by block; where blocks are gone the others have moved up, and the folder's report says which went."""
    moved = model.blocks != dense.blocks
    counted = {} if moved else {matrix.name: matrix.sparsity for matrix in model.matrices}
    shares = _by_place(counted or {site.site: site.reached for site in (model.made.sites if model.made else ())})
    if not shares:
        return None
    kinds, depths = list(dict.fromkeys(kind for kind, _ in shares)), sorted({depth for _, depth in shares})
    how = "counted in the weights" if counted else "as its report says"
    title = f"{model.name}: sparsity by block and matrix"
    flat = list(shares.values())
    told = (f"Share of every matrix of {model.name} that is zero or gone, {how}: from {min(flat):.3f} to {max(flat):.3f}, "
            f"mean {statistics.fmean(flat):.3f}.")
    rows = tuple((Cell(f"block {depth}"), *(known(shares.get((kind, depth)), 3) for kind in kinds)) for depth in depths)
    return Chart(title, told, heat(f"map-{index}", title, told, kinds, depths, shares), Table(title, ("", *kinds), (("", rows),)))


def known(value: float | None, digits: int) -> Cell:
    """A cell with a number that may not be known."""
    return Cell("–" if value is None else f"{value:,.{digits}f}")


def _by_place(sites: Mapping[str, float]) -> dict[tuple[str, int], float]:
    """By kind and depth; of kinds only the last word, where that says which."""
    found = {place(name): value for name, value in sites.items()}
    kinds = {kind: kind.rpartition(".")[2] for _, kind in found}
    short = len(set(kinds.values())) == len(kinds)
    return {(kinds[kind] if short else kind, depth): value for (depth, kind), value in found.items()}


def _errors(found: Compared) -> Section | None:
    """The relative output error that the folders' reports have, as means by block."""
    series: dict[str, list[tuple[int, float]]] = {}
    colours: list[int] = []
    for index, model in enumerate(found.models):
        by_block: dict[int, list[float]] = {}
        for site in model.made.sites if model.made else ():
            if site.error is not None and math.isfinite(site.error):
                by_block.setdefault(place(site.site)[0], []).append(site.error)
        if by_block:
            colours.append(index)
            series[model.name] = [(depth, statistics.fmean(values)) for depth, values in sorted(by_block.items())]
    if not series:
        return None
    title = "Relative output error by block"
    told = ("Mean over the matrices of a block, on each model's own calibration text, as its report says. " +
            " ".join(f"{name}: from {min(value for _, value in pairs):.4f} to {max(value for _, value in pairs):.4f}."
                     for name, pairs in series.items()))
    depths = sorted({depth for pairs in series.values() for depth, _ in pairs})
    by_name = {name: dict(pairs) for name, pairs in series.items()}
    rows = tuple((Cell(f"block {depth}"), *(known(by_name[name].get(depth), 4) for name in series)) for depth in depths)
    drawing = lines("error", title, told, series, colours, "block", "relative output error")
    return Section("Error by depth", (Chart(title, told, drawing, Table(title, ("", *series), (("", rows),))),))


def _answers(found: Compared) -> Section | None:
    if not found.prompts:
        return None
    tables = []
    for index, prompt in enumerate(found.prompts):
        first = found.dense.answers[index].split()
        rows = [(Cell(f"{found.dense.name} (dense)"), Cell(" ".join(first) or "(nothing)"))]
        for model in found.pruned:
            rows.append((Cell(model.name), words_of(first, model.answers[index].split())))
        tables.append(Table(f"“{' '.join(prompt.split())}”", ("", "answer"), (("", tuple(rows)),)))
    return Section("The same prompts", (Text(
        f"Greedy decoding, at most {found.asked.answer} tokens. Marked: words that the dense model does not say there."), *tables))


def words_of(dense: Sequence[str], words: Sequence[str]) -> Cell:
    """An answer with the words marked that are not the dense model's, by difflib."""
    if not words:
        return Cell("(nothing)")
    marked = [True] * len(words)
    for block in difflib.SequenceMatcher(None, dense, words, autojunk=False).get_matching_blocks():
        marked[block.b : block.b + block.size] = [False] * block.size
    return Cell(" ".join(words), marked=tuple(marked))


def _overlaps(found: Compared) -> Section | None:
    rows = tuple((Cell(name), Cell(item.text), Cell(item.before), Cell(f"{item.shared:,} of {item.runs:,}, of {item.words} words"),
                  Cell(f"{item.share:.2%}"))
                 for name, items in found.overlaps.items() for item in items)
    if not rows:
        return None
    head = ("", "text", "was seen in", "shared runs", "share")
    told = "How much of each report text, and of the questions of each task, stands in what a model has seen, as its recipe says"
    table = Table(told, head, (("", rows),))
    return Section("Texts seen before", (table,), opened=False)


def _costs(found: Compared) -> Section:
    every = [model.spent for model in found.models]
    groups = (("Measuring, seconds", _by_part(every, lambda spent: spent.seconds, 1)),
              ("Measuring, tokens forwarded", _by_part(every, lambda spent: spent.tokens or None, 0)),
              ("Measuring, memory and energy", tuple(_held([list(spent.values()) for spent in every]))),
              ("Pruning, as the folder's report says", tuple(_making([model.made or _NOTHING for model in found.models]))))
    table = Table("What it cost to measure and to make each model", ("", *(model.name for model in found.models)), groups)
    shared = tuple((Cell(name), known(spent.seconds, 1), known(spent.tokens or None, 0), known(spent.joules, 0))
                   for name, spent in found.spent.items())
    whole = (Table("What is not of one model", ("", "seconds", "tokens forwarded", "energy, J"), (("", shared),)),) if shared else ()
    machine = "; ".join(f"{name}: {value}" for name, value in found.environment.items())
    told = ("Costs are of when a number was measured; what was known already was not measured again. Tokens are passes through the whole "
            "of the model that is measured. Memory is the most that the process had held by then, whatever for. Energy is of the whole "
            "machine, where it can be read.")
    return Section("Cost", (table, *whole, Text(told), Text(f"{machine}.")), opened=False)


def _by_part(models: Sequence[Mapping[str, Spent]], value: Callable[[Spent], float | None], digits: int) -> tuple[tuple[Cell, ...], ...]:
    """A line for every part of the measuring that has such a number, and one for all of them."""
    numbers = [{name: number for name, spent in parts.items() if (number := value(spent)) is not None} for parts in models]
    lines = [(Cell(name), *(known(parts.get(name), digits) for parts in numbers)) for name in dict.fromkeys(
        name for parts in numbers for name in parts)]
    return (*lines, (Cell("in all"), *(known(math.fsum(parts.values()), digits) for parts in numbers)))


def _held(models: Sequence[Sequence[Spent]]) -> Iterator[tuple[Cell, ...]]:
    """The most memory, and all energy."""
    host = [max((spent.host_bytes for spent in parts), default=0) for parts in models]
    on_gpu = [max((spent.device_bytes or 0 for spent in parts), default=0) for parts in models]
    joules = [[spent.joules for spent in parts if spent.joules is not None] for parts in models]
    yield Cell("peak memory, MiB"), *(_mib(size) for size in host)
    if any(on_gpu):
        yield Cell("peak memory of the GPU, MiB"), *(_mib(size) for size in on_gpu)
    yield Cell("energy, J"), *(known(math.fsum(found) if found else None, 0) for found in joules)


def _making(made: Sequence[Made]) -> Iterator[tuple[Cell, ...]]:
    for stage in dict.fromkeys(stage for one in made for stage in one.stages):
        yield Cell(f"seconds, {stage}"), *(known(one.stages.get(stage), 0) for one in made)
    yield Cell("seconds, in all"), *(known(one.seconds, 0) for one in made)
    yield Cell("tokens forwarded"), *(known(one.tokens, 0) for one in made)
    if any(one.questions for one in made):
        yield Cell("candidates that searches asked for"), *(known(one.questions or None, 0) for one in made)
        yield Cell("looks at the search text"), *(known(one.looks or None, 1) for one in made)
    yield Cell("peak memory, MiB"), *(_mib(one.host_bytes) for one in made)
    if any(one.device_bytes for one in made):
        yield Cell("peak memory of the GPU, MiB"), *(_mib(one.device_bytes) for one in made)
    yield Cell("energy, J"), *(known(one.joules, 0) for one in made)


def _mib(size: int | None) -> Cell:
    return known(size / 2**20 if size else None, 0)


def protocol_lines(rows: Sequence[Row]) -> tuple[str, ...]:
    """How every number came about."""
    return protocols_of((row.label, row.protocol) for row in rows if row.protocol)


def _protocols(found: Compared) -> Section:
    return Section("Protocols", tuple(map(Text, protocol_lines(found.rows))), opened=False)


def _again(found: Compared) -> Section:
    commands = [found.command, *(model.made.command for model in found.pruned if model.made and model.made.command)]
    return Section("Reproduce", (Code("\n".join(commands)),))
