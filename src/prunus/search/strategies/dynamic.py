"""Dynamic programming on errors that add up, with searched weights on them (SPDY; Frantar & Alistarh 2022)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import RecipeError
from ..space import Candidate, Query, Space, Trial

__all__ = ["Dynamic"]


@dataclass(frozen=True)
class State:
    """The best weights so far, and those that were tried last."""

    space: Space
    rng: random.Random
    first: Candidate
    best: float = math.inf
    weights: tuple[float, ...] = ()  # logarithms, one per site
    tried: tuple[float, ...] = ()
    step: int = 0


@dataclass(frozen=True)
class Dynamic:
    """Frantar & Alistarh 2022 (ICML), section 3: the candidate with the least weighted sum of its sites' errors is found
    exactly, up to the width of a bin of the budget; what is searched is one weight per site. Needs the errors of a level store.
    """

    bins: int = 20000  # of the weights that must go; more is finer and slower
    change: float = 0.1  # share of the weights that change from one question to the next
    size: float = 1.0  # standard deviation of a change of a logarithm

    needs_errors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bins < 1 or not 0 < self.change <= 1 or self.size <= 0:
            raise RecipeError(f"bins = {self.bins}, change = {self.change:g}, size = {self.size:g}: expected at least one bin, a "
                              "share in (0, 1] and a size above 0.")

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        if not space.errors:
            raise RecipeError("'dynamic' needs the error of every site at every level; solve with a solver that needs a Gram matrix.")
        return State(space, random.Random(seed), first, weights=(0.0,) * len(space.sites))

    def ask(self, state: State) -> list[Query]:
        if state.step == 0:
            return [Query(state.first)]
        return [Query(_least(state.space, state.tried, self.bins))]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        (trial,) = trials
        if state.step == 0:  # next, the plain sum
            return replace(state, best=math.inf, tried=state.weights, step=1)
        if trial.value <= state.best:
            state = replace(state, best=trial.value, weights=state.tried)
        moved = list(state.weights)
        for index in state.rng.sample(range(len(moved)), max(1, round(self.change * len(moved)))):
            moved[index] += state.rng.gauss(0, self.size)
        return replace(state, tried=tuple(moved), step=state.step + 1)


def _least(space: Space, weights: Sequence[float], bins: int) -> Candidate:
    """The candidate with the least sum of exp(weight) * error that removes enough.

    What goes is counted in whole bins; what the rounding removes too little or too much is put right afterwards.
    """
    width = max(space.required, 1.0) / bins
    least = torch.full((bins + 1,), math.inf, dtype=torch.float64)  # by the bins that have gone; the last: all or more
    least[0] = 0.0
    steps: list[tuple[Tensor, Tensor]] = []  # for every number of bins: the level, and the bins before it
    for row, errors, weight in zip(space.gone, space.errors, weights, strict=True):
        totals = torch.full((len(space.levels), bins + 1), math.inf, dtype=torch.float64)
        before = torch.zeros(len(space.levels), bins + 1, dtype=torch.int64)
        for level, (weights_gone, error) in enumerate(zip(row, errors, strict=True)):
            gone = min(round(weights_gone / width), bins)
            cost = math.exp(weight) * error
            totals[level, gone:] = least[: bins + 1 - gone] + cost
            before[level, gone:] = torch.arange(bins + 1 - gone)
            last = int(least[bins - gone :].argmin()) + bins - gone
            totals[level, bins], before[level, bins] = least[last] + cost, last
        least, choice = totals.min(0)
        steps.append((choice, before.gather(0, choice[None])[0]))
    if not math.isfinite(float(least[bins])):  # no room between the bins: the highest level everywhere
        return (len(space.levels) - 1,) * len(space.sites)
    chosen: list[int] = []
    bin_ = bins
    for choice, before in reversed(steps):
        chosen.append(int(choice[bin_]))
        bin_ = int(before[bin_])
    costs = [[math.exp(weight) * error for error in errors] for errors, weight in zip(space.errors, weights, strict=True)]
    return space.mended(tuple(reversed(chosen)), costs)
