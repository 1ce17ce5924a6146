"""What can be said of several models: a row for every number, with its test, and only what the test allows in words."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ..comparison import bare, check_pair, p_value, ranked, sides_of
from ..evaluation import Measurement
from ..grams import Overlap
from ..guards import flags, shortfall
from ..significance import LEVEL, holm
from ..speed import NUMBERS, Timing, ratio
from ..uncertainty import Interval
from .values import MEAN, Beside, Contender, Entry, Group, Row

__all__ = ["bad_parts", "direction", "flags_of", "notes_of", "rows_of", "ruined"]

_SIZES: tuple[tuple[str, str, Literal["lower", "higher", ""], Callable[[Contender], float | None]], ...] = (
    ("parameters", "", "lower", lambda model: model.parameters),
    ("weights in memory", "MiB", "lower", lambda model: model.bytes / 2**20),
    ("weight files", "MiB", "lower", lambda model: None if model.file_bytes is None else model.file_bytes / 2**20),
    ("peak memory of a process", "MiB", "", lambda model: None if model.memory is None else model.memory / 2**20),
    ("sparsity, counted", "share", "", lambda model: model.sparsity))


def rows_of(models: Sequence[Contender], speed: str) -> tuple[Row, ...]:
    """Every number of all models; `speed` is the protocol of what is timed. Raises ComparisonError where two are no pair."""
    names = [model.name for model in models]
    rows = [_measured(names, several) for several in zip(*(model.measured for model in models), strict=True)]
    if all(model.timing is not None for model in models):
        rows += [_timed(names, models, *which, speed) for which in NUMBERS]
    sizes = [_sized(models, *which) for which in _SIZES]
    return (*rows, *(row for row in sizes if any(row.entries)))


def _measured(names: Sequence[str], several: Sequence[Measurement]) -> Row:
    """A number with parts. The pruned models are tested against the dense one, corrected for their number, and against each other,
    corrected for that number of pairs. A number that is no mean of its parts has no test but its interval."""
    dense = several[0]
    group: Group = "Tasks" if dense.examples or dense.label.startswith(MEAN) else "Texts"
    finite = [place for place, item in enumerate(several) if not bad_parts(item)]
    for place in finite[1:]:
        check_pair(several[finite[0]], several[place], (names[finite[0]], names[place]))
    pruned = {place: several[place] for place in finite if place}
    tested: dict[int, float] = {}
    best: tuple[str, ...] = ()
    said, comparisons = "", 0
    of_dense = "with dense" in dense.label or "from dense" in dense.label  # the dense model's own is known beforehand
    if not dense.draws and 0 in finite and not of_dense:
        tested = holm({place: p_value(dense.parts, item.parts) for place, item in pruned.items()})
        comparisons += len(tested)
    if not dense.draws and pruned:
        ranking = ranked({names[place]: item for place, item in pruned.items()}, LEVEL)
        best, comparisons = ranking.tied, comparisons + ranking.comparisons
        said = ranking.verdict if len(pruned) > 1 else ""
    entries: list[Entry] = []
    for place, item in enumerate(several):
        beside = _beside(item, dense, tested.get(place)) if place in pruned and 0 in finite and not of_dense else None
        interval = item.interval if place in finite and (place or not of_dense) else None
        entries.append(Entry(item.value, interval, beside, place > 0 and names[place] in best))
    verdict = " ".join(part for part in (_against_dense(names, entries), said) if part)
    return Row(group, dense.label, dense.unit, dense.better, bare(dense.protocol), tuple(entries), verdict, comparisons)


def _beside(item: Measurement, dense: Measurement, p: float | None) -> Beside:
    word, value, interval = item.beside(dense)
    same = 1.0 if word == "ratio" else 0.0
    shown = p < LEVEL if p is not None else not interval[0] <= same <= interval[1]
    return Beside(word, value, interval, p, direction(value, same, dense.better) if shown else "open")


def direction(value: float, same: float, better: str) -> Literal["better", "worse", "open"]:
    """Which way a number lies from another."""
    if value == same or not better:
        return "open"
    return "better" if (value < same) == (better == "lower") else "worse"


def _against_dense(names: Sequence[str], entries: Sequence[Entry | None]) -> str:
    said = {name: entry.beside.said for name, entry in zip(names, entries, strict=True) if entry and entry.beside}
    return sides_of(said, "the dense model", ("worse", "better", "open"))


def _timed(names: Sequence[str], models: Sequence[Contender], label: str, unit: str, better: Literal["lower", "higher"],
           values: Callable[[Timing], tuple[float, ...]], protocol: str) -> Row:
    """Rounds were run in turn, so that each is a pair; better or worse is what every round says."""
    rounds = [values(model.timing) for model in models if model.timing is not None]
    middles = [statistics.median(each) for each in rounds]
    first = max(range(1, len(models)), key=lambda place: middles[place] if better == "higher" else -middles[place])
    entries = []
    for place, each in enumerate(rounds):
        interval = (min(each), max(each))
        beside = None
        if place:
            middle, low, high = ratio(rounds[0], each)
            beside = Beside("ratio", middle, (low, high), None, "open" if low <= 1 <= high else direction(middle, 1.0, better))
        entries.append(Entry(middles[place], interval, beside, place > 0 and _touches(rounds[first], each)))
    return Row("Speed", label, unit, better, f"{label}, {protocol}", tuple(entries), _against_dense(names, entries))


def _touches(one: Sequence[float], other: Sequence[float]) -> bool:
    _, low, high = ratio(one, other)
    return low <= 1 <= high


def _sized(models: Sequence[Contender], label: str, unit: str, better: Literal["lower", "higher", ""],
           value: Callable[[Contender], float | None]) -> Row:
    """A number that is exact."""
    values = [value(model) for model in models]
    known = [item for item in values[1:] if item is not None]
    entries: list[Entry | None] = []
    for place, item in enumerate(values):
        if item is None:
            entries.append(None)
            continue
        beside = None
        if place and better and values[0]:
            share = item / values[0]
            limits: Interval = (share, share)
            beside = Beside("ratio", share, limits, None, direction(share, 1.0, better))
        entries.append(Entry(float(item), None, beside, bool(better) and place > 0 and item == min(known) < (values[0] or 0.0)))
    return Row("Size", label, unit, better, "", tuple(entries))


def flags_of(models: Sequence[Contender], overlaps: Mapping[str, Sequence[Overlap]]) -> tuple[str, ...]:
    """Why figures may not be what they look like, model by model."""
    dense, *pruned = models
    found = [line for model in models for line in ruined(model.name, model.measured)]
    for model in pruned:
        found += [f"{model.name} {line[0].lower()}{line[1:]}" for line in flags(dense.measured, model.measured, overlaps[model.name])]
    return tuple(found)


def ruined(name: str, measured: Sequence[Measurement]) -> list[str]:
    """A word on a model whose numbers are not finite; none where they are."""
    bad = [(item, places) for item in measured if (places := bad_parts(item))]
    if not bad:
        return []
    item, places = bad[0]
    more = len(bad) - 1
    others = f", and {more} other number{'s' * (more > 1)} neither" if more else ""
    return [f"{name} is ruined or overflows: {item.label} is not finite in {len(places)} of {len(item.parts)} windows or examples, "
            f"the first is {places[0]}{others}. It takes part in no test of these."]


def bad_parts(item: Measurement) -> list[int]:
    """The places of parts that are not finite, or of examples whose likelihoods are no numbers: one of several such is still "chosen"."""
    chosen = {place for place, example in enumerate(item.examples) if any(map(math.isnan, example.likelihoods))}
    return sorted(chosen | {place for place, part in enumerate(item.parts) if not math.isfinite(part)})


def notes_of(models: Sequence[Contender]) -> tuple[str, ...]:
    """What a reader should know of the weights."""
    dense, *pruned = models
    found: list[str] = []
    for model in pruned:
        if model.sparsity is None:
            found.append(f"{model.name}: its matrices are not what is left of {dense.name}'s, so no sparsity is counted.")
        named = model.made.sites if model.made and model.blocks == dense.blocks else ()  # where blocks are gone, the others have moved up
        found += [f"{model.name}: {line}" for line in shortfall(named, model.matrices)]
    return tuple(found)
