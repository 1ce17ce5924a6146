"""What a search may choose: one level per site, within a budget."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
from numpy.typing import NDArray

from ..allocation import Per, group_of, reach
from ..budget import Allocation, Budget
from ..errors import RecipeError
from ..granularity import Granularity, Unstructured
from ..sites import Site, SublayerSite

__all__ = ["Array", "Candidate", "Query", "Space", "Trial", "shifted"]

Array = NDArray[numpy.float64]

Candidate = tuple[int, ...]  # index of the level of every site, in the order of the space's sites; or which of its channels go


def shifted(values: Array, low: Array, high: Array, weights: Array, needed: float) -> Array:
    """`values`, all moved by the least number with which weights @ values is at least `needed`, and cut off at `low` and `high`."""
    least, most = float((low - values).min()), float((high - values).max())
    for _ in range(50):
        middle = (least + most) / 2
        enough = float(numpy.clip(values + middle, low, high) @ weights) >= needed
        least, most = (least, middle) if enough else (middle, most)
    moved: Array = numpy.clip(values + most, low, high)
    return moved


@dataclass(frozen=True)
class Query:
    """A candidate that a strategy wants valued, on a share of the search text."""

    candidate: Candidate
    share: float = 1.0  # of the search text, in (0, 1]; strategies look at many on little text first
    part: int = 0  # which share of it, counted from the first and around
    partial: bool = False  # some sites are not decided yet: it need not meet the budget, and is never the answer


@dataclass(frozen=True)
class Trial:
    """A query and what it was valued at; lower is better, infinity stands for a value that is no number."""

    candidate: Candidate
    value: float
    share: float = 1.0  # of the search text that was looked at: at least what was asked for


@dataclass(frozen=True)
class Space:
    """Every site has one of the same levels, and all of them together meet the budget, counted in the weights that really go:
    whole ones, whole channels, whole branches. Of levels at which the same goes from a site, only the first is used.

    Raises RecipeError when the levels are not ascending, or when no level is at least, or none at most, the budget's sparsity.
    """

    sites: tuple[Site, ...]
    levels: tuple[float, ...]  # sparsities, ascending, in [0, 1)
    budget: Budget
    errors: tuple[tuple[float, ...], ...] = ()  # of every site at every level, where they are known
    granularity: Granularity = Unstructured("matrix")  # of matrices; channels and branches go whole

    def __post_init__(self) -> None:
        whole = all(isinstance(site, SublayerSite) for site in self.sites)
        if list(self.levels) != sorted(set(self.levels)) or not all(0 <= level < 1 or (whole and level == 1) for level in self.levels):
            raise RecipeError(f"levels = {list(self.levels)}: expected ascending sparsities in [0, 1).")
        asked = self.budget.sparsity
        if not self.levels or self.levels[0] > asked + 1e-9 or self.levels[-1] < asked - 1e-9:
            raise RecipeError(f"levels = {list(self.levels)}: expected levels on both sides of the budget's sparsity {asked:g}.")

    @cached_property
    def required(self) -> float:
        """Weights that must go."""
        return self.budget.sparsity * sum(site.size for site in self.sites)

    @cached_property
    def gone(self) -> tuple[tuple[float, ...], ...]:
        """Weights that go from every site at every level."""
        return tuple(tuple(site.size * reach(site, level, self.granularity) for level in self.levels) for site in self.sites)

    @cached_property
    def _rungs(self) -> tuple[tuple[int, ...], ...]:
        """The levels of every site that differ in what goes."""
        return tuple(tuple(level for level, weights in enumerate(row) if row.index(weights) == level) for row in self.gone)

    @cached_property
    def steps(self) -> tuple[float, ...]:
        """From one level to the next, by site, in what really goes: the median. A site of few channels has large ones."""
        rungs = [numpy.diff([row[level] / site.size for level in levels])
                 for site, row, levels in zip(self.sites, self.gone, self._rungs, strict=True)]
        return tuple(float(numpy.median(found)) if len(found) else 0.0 for found in rungs)

    def departing(self, first: Candidate, per: Per, departures: Iterable[float]) -> Candidate:
        """The candidate nearest to the shares of another and one departure from them per matrix, sublayer or block, in steps.

        The sums are all moved by one number, and cut off at the first and the last level, so that the budget is met.
        """
        sizes, steps = numpy.array([float(site.size) for site in self.sites]), numpy.array(self.steps)
        shares, rows = numpy.array(self.shares(first)), numpy.array(self.gone) / sizes[:, None]
        for group, departure in zip(self.groups(per), departures, strict=True):
            shares[group] += departure * steps[group]
        moved = shifted(shares, rows[:, 0], rows[:, -1], sizes, self.required)
        return self.nearest({site.name: float(share) for site, share in zip(self.sites, moved, strict=True)})

    def groups(self, per: Per) -> list[list[int]]:
        """The indices of the sites that lie in the same matrix, sublayer or block."""
        found: dict[str, list[int]] = {}
        for index, site in enumerate(self.sites):
            found.setdefault(group_of(site, per), []).append(index)
        return list(found.values())

    def spans(self, per: Per) -> tuple[Array, Array]:
        """By group: what goes from it at the first level, and how much more at the last."""
        low, high = (numpy.array([sum(self.gone[index][level] for index in group) for group in self.groups(per)]) for level in (0, -1))
        return low, high - low

    def leaning(self, candidate: Candidate, per: Per, certainty: float) -> Array:
        """By group: how far a candidate is on the way from the first level to the last, in [0, 1]; the less certain, the nearer to the
        mean of all weights."""
        low, width = self.spans(per)
        gone = numpy.array([sum(self.gone[index][candidate[index]] for index in group) for group in self.groups(per)])
        way = numpy.clip((gone - low) / numpy.maximum(width, 1e-9), 0, 1)
        mean = float(width @ way) / max(float(width.sum()), 1e-9)
        found: Array = (1 - certainty) * mean + certainty * way
        return found

    def without(self, goes: Iterable[Any], per: Per) -> Candidate:
        """The groups that go have the last level, and the others the first."""
        chosen = [0] * len(self.sites)
        for group, gone in zip(self.groups(per), goes, strict=True):
            for index in group:
                chosen[index] = len(self.levels) - 1 if gone else 0
        return tuple(chosen)

    def allocation(self, candidate: Candidate) -> dict[str, float]:
        """Site name to sparsity, as it is asked of the solver."""
        return {site.name: self.levels[level] for site, level in zip(self.sites, candidate, strict=True)}

    def shares(self, candidate: Candidate) -> list[float]:
        """What really goes of every site."""
        return [row[level] / site.size for site, row, level in zip(self.sites, self.gone, candidate, strict=True)]

    def removed(self, candidate: Candidate) -> float:
        """Weights that go."""
        return sum(row[level] for row, level in zip(self.gone, candidate, strict=True))

    def mark(self, candidate: Candidate) -> Candidate:
        """What a candidate is written down as."""
        return candidate

    def met(self, candidate: Candidate) -> bool:
        """Whether enough weights go, to rounding."""
        return self.removed(candidate) >= self.required - 1e-6

    def nearest(self, allocation: Allocation) -> Candidate:
        """The levels closest to an allocation, moved as little as needed to meet the budget, and no further."""
        distances = [[abs(weights / site.size - allocation[site.name]) for weights in row]
                     for site, row in zip(self.sites, self.gone, strict=True)]
        return self.mended(tuple(row.index(min(row)) for row in distances), distances)

    def mended(self, candidate: Candidate, costs: Sequence[Sequence[float]]) -> Candidate:
        """A candidate moved level by level until it meets the budget and no more, where that adds least to the costs
        (of every site at every level)."""
        chosen = list(candidate)

        def added(index: int, step: int) -> float:
            return costs[index][self._next(index, chosen[index], step)] - costs[index][chosen[index]]

        while not self.met(tuple(chosen)):
            self._move(chosen, min(self._can(chosen, 1), key=lambda index: added(index, 1)), 1)
        while spare := self._spare(chosen):
            self._move(chosen, min(spare, key=lambda index: added(index, -1)), -1)
        return tuple(chosen)

    def neighbour(self, candidate: Candidate, rng: random.Random, switches: int = 1, per: Per = "matrix") -> Candidate:
        """A candidate from which `switches` matrices, sublayers or blocks give one level more, and others as much less as the
        budget lets them."""
        chosen, groups = list(candidate), self.groups(per)
        raised: set[int] = set()
        for _ in range(switches):
            able = set(self._can(chosen, 1))
            for index in rng.choice([group for group in groups if able.intersection(group)] or [()]):
                if index in able:
                    self._move(chosen, index, 1)
                    raised.add(index)
        self._lower(chosen, rng, raised, groups)
        return tuple(chosen)

    def draw(self, rng: random.Random) -> Candidate:
        """Any candidate that meets the budget and would not if any site gave one level less."""
        chosen = [rng.choice(rungs) for rungs in self._rungs]
        while not self.met(tuple(chosen)):
            self._move(chosen, rng.choice(self._can(chosen, 1)), 1)
        self._lower(chosen, rng, set(), self.groups("matrix"))
        return tuple(chosen)

    def _lower(self, chosen: list[int], rng: random.Random, fixed: set[int], groups: Sequence[Sequence[int]]) -> None:
        """Give back, group by group in random order, what the budget does not need."""
        while spare := set(self._spare(chosen)) - fixed:
            for index in rng.choice([group for group in groups if spare.intersection(group)]):
                if index not in fixed and index in self._spare(chosen):
                    self._move(chosen, index, -1)

    def _next(self, index: int, level: int, step: int) -> int:
        """The site's next level up (1) or down (-1); its own where there is none."""
        rungs = self._rungs[index]
        place = rungs.index(self.gone[index].index(self.gone[index][level])) + step
        return rungs[place] if 0 <= place < len(rungs) else level

    def _move(self, chosen: list[int], index: int, step: int) -> None:
        chosen[index] = self._next(index, chosen[index], step)

    def _can(self, chosen: Sequence[int], step: int) -> list[int]:
        """Sites that have a level up (1) or down (-1)."""
        return [index for index, level in enumerate(chosen) if self._next(index, level, step) != level]

    def _spare(self, chosen: Sequence[int]) -> list[int]:
        """Sites that can give one level less while the budget is still met."""
        slack = self.removed(tuple(chosen)) - self.required + 1e-6
        return [index for index in self._can(chosen, -1)
                if self.gone[index][chosen[index]] - self.gone[index][self._next(index, chosen[index], -1)] <= slack]
