"""What a study's cells say together: means and deviations over seeds, and only those differences that the tests allow."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

from ..comparing.verdicts import LEVEL, bad_parts, direction
from ..comparison import check_pair, p_value, verdict_of
from ..evaluation import Measurement
from ..significance import holm, of_seeds
from ..uncertainty import draws_interval

__all__ = ["Against", "Entry", "Level", "Number", "Series", "number_of", "tested"]

Said = Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Series:
    """One number of one recipe, by seed."""

    name: str  # of the recipe
    level: str  # what it is asked to remove
    seeds: Mapping[int, Measurement]  # those that are there; the same for all where seeds decide nothing
    fixed: bool = False  # whether seeds decide nothing
    ranks: bool = False  # whether others of its level are tested against it

    @property
    def values(self) -> tuple[float, ...]:
        """One per seed, or one where seeds decide nothing."""
        every = [item.value for item in self.seeds.values()]
        return tuple(every[:1] if self.fixed else every)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Of samples, over seeds; no number where there are fewer than two, or they decide nothing."""
        return statistics.stdev(self.values) if len(self.values) > 1 and all(map(math.isfinite, self.values)) else math.nan

    @property
    def finite(self) -> bool:
        """Whether it is there and can be tested."""
        return bool(self.seeds) and not any(map(bad_parts, self.seeds.values())) and all(map(math.isfinite, self.values))


@dataclass(frozen=True)
class Against:
    """A recipe's number against the baseline of its level."""

    baseline: str
    difference: float  # of the means over the seeds that both have
    p: float | None  # of no difference, for all recipes of the level at once (Holm); None where there is no test
    said: Said


@dataclass(frozen=True)
class Entry:
    """One recipe's place in one column."""

    series: Series
    against: Against | None = None  # None of the baseline, and of what cannot be tested
    best: bool = False  # of its level, or not to be told from the best of it


@dataclass(frozen=True)
class Level:
    """What the tests allow to say of recipes that were asked to remove the same."""

    name: str
    verdict: str
    comparisons: int


@dataclass(frozen=True)
class Number:
    """One number of all recipes of a model."""

    label: str
    unit: str
    better: Literal["lower", "higher"]
    protocol: str
    dense: Measurement | None
    entries: tuple[Entry, ...]  # in the order of the study
    levels: tuple[Level, ...] = field(default=())


def tested(one: Series, other: Series) -> tuple[float, float | None]:
    """The difference of two recipes' means (the other's - the one's) over the seeds that both have, and the p-value of none.

    Two tests must agree. Over examples: each window or question has its mean over seeds, and these are tested as two models' are
    (random signs; McNemar's where all are right or wrong). Over seeds, where there are two or more that decide something: Student's
    paired test of the values. p is the larger one of the two, and 1 where they point in opposite directions, so that "better" is said
    of other texts and of other seeds alike. A number that is no mean of its examples has the test over seeds alone, where its interval
    over examples must leave 0 out; with one seed it has none.
    """
    common = [seed for seed in one.seeds if seed in other.seeds]
    if not common:
        return math.nan, None
    mine, theirs = ([series.seeds[seed] for seed in common] for series in (one, other))
    check_pair(mine[0], theirs[0], (one.name, other.name))
    seeds = of_seeds([item.value for item in mine], [item.value for item in theirs])
    found: list[float] = []
    if not mine[0].draws:
        parts = [_means(items) for items in (mine, theirs)]
        found.append(p_value(*parts))
        apart = math.fsum(parts[1]) - math.fsum(parts[0])
        if apart * seeds.difference < 0:
            found.append(1.0)
    if len(common) > 1 and not (one.fixed and other.fixed):
        found.append(seeds.p)
        if mine[0].draws and _may_be_none(mine, theirs):
            found.append(1.0)
    return seeds.difference, max(found) if found else None


def _may_be_none(mine: Sequence[Measurement], theirs: Sequence[Measurement]) -> bool:
    """Whether the difference may be 0 on other examples, of a number that is computed from all of them together."""
    drawn = [[math.fsum(values) / len(values) for values in zip(*(item.draws for item in items), strict=True)] for items in (mine, theirs)]
    low, high = draws_interval([there - here for here, there in zip(*drawn, strict=True)], len(mine[0].parts))
    return low <= 0 <= high


def _means(items: Sequence[Measurement]) -> tuple[float, ...]:
    """Of every example over seeds."""
    return tuple(math.fsum(values) / len(values) for values in zip(*(item.parts for item in items), strict=True))


def number_of(dense: Measurement | None, series: Sequence[Series]) -> Number:
    """One number of all recipes, with its tests: recipes are only compared with those of their level."""
    like = dense or next(item for one in series for item in one.seeds.values())
    entries: dict[str, Entry] = {one.name: Entry(one) for one in series}
    levels = []
    for level in dict.fromkeys(one.level for one in series):
        peers = [one for one in series if one.level == level]
        against, first = _against(peers, like.better)
        best, verdict, second = _best(peers, like.better)
        for one in peers:
            entries[one.name] = Entry(one, against.get(one.name), one.name in best)
        said = " ".join(part for part in (_sentence(against), verdict) if part)
        if said:
            levels.append(Level(level, said, first + second))
    return Number(like.label, like.unit, like.better, like.protocol, dense, tuple(entries[one.name] for one in series), tuple(levels))


def _against(peers: Sequence[Series], better: str) -> tuple[dict[str, Against], int]:
    """Every recipe of a level against its baseline, corrected for their number."""
    baseline = next((one for one in peers if one.ranks and one.finite), None)
    if baseline is None:
        return {}, 0
    found = {one.name: tested(baseline, one) for one in peers if one is not baseline and one.finite}
    corrected = holm({name: p for name, (_, p) in found.items() if p is not None})
    return {name: Against(baseline.name, difference, corrected.get(name),
                          direction(difference, 0.0, better) if corrected.get(name, 1.0) < LEVEL else "open")
            for name, (difference, _) in found.items() if not math.isnan(difference)}, len(corrected)


def _best(peers: Sequence[Series], better: str) -> tuple[tuple[str, ...], str, int]:
    """The best of a level, over the seeds that all have, and those that cannot be told from it, corrected for all pairs; nothing where
    a pair has no test."""
    there = [one for one in peers if one.finite]
    common = set.intersection(*(set(one.seeds) for one in there)) if there else set()
    names = [replace(one, seeds={seed: item for seed, item in one.seeds.items() if seed in common}) for one in there] if common else []
    pairs = {(one.name, other.name): tested(one, other)[1] for one, other in combinations(names, 2)}
    known = {pair: p for pair, p in pairs.items() if p is not None}
    if not pairs or len(known) < len(pairs):
        return (), "", 0
    order = [one.name for one in sorted(names, key=lambda one: one.mean, reverse=better == "higher")]
    adjusted, best = holm(known), order[0]
    tied = [best, *(name for name in order[1:] if max(adjusted.get((best, name), 0.0), adjusted.get((name, best), 0.0)) >= LEVEL)]
    others = [name for name in order if name not in tied]
    said = verdict_of(tied, others, len(known), LEVEL) if len(order) > 2 else ""
    return tuple(tied), said.replace("No model is", "None is"), len(known) if len(order) > 2 else 0


def _sentence(against: Mapping[str, Against]) -> str:
    """"A is better than the baseline; B cannot be told from it.\""""
    said: list[str] = []
    for way in ("better", "worse", "open"):
        which = [name for name, one in against.items() if one.said == way and one.p is not None]
        if which:
            word = "cannot be told from" if way == "open" else f"{'is' if len(which) == 1 else 'are'} {way} than"
            said.append(f"{', '.join(which)} {word} {next(iter(against.values())).baseline}")
    return f"{'; '.join(said)}." if said else ""
