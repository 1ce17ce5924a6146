"""Policy gradient over levels: a normal distribution over all shares at once, moved towards draws that did well (Williams 1992)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy

from ...allocation import Per
from ...errors import RecipeError
from ..space import Array, Candidate, Query, Space, Trial

__all__ = ["Reinforce"]


@dataclass(frozen=True)
class State:
    """The policy, and the draws whose values it waits for."""

    space: Space
    first: Candidate
    rng: Any  # numpy's generator
    mean: Array  # of every group's departure from the first candidate's shares, in levels
    deviation: Array
    draws: Array | None = None  # in deviations from the mean; None while the policy itself is valued
    updates: int = 0


@dataclass(frozen=True)
class Reinforce:
    """REINFORCE with one move per episode: the policy draws a departure from the first candidate's shares for every matrix,
    sublayer or block, and all of them together are one action.

    Draws come in pairs of opposite sign and are valued on little text, another part of it for every update; their advantages
    are the utilities of their ranks, which no outlier moves (Wierstra et al. 2014, section 3.1), and the natural gradient is
    taken, in which steps do not depend on how the policy is written down. After every update the policy's mean is valued on
    the whole text. Shares are projected onto the budget before the nearest levels are taken.
    """

    population: int = 16  # draws per update
    share: float = 0.125  # of the search text that draws are valued on
    deviation: float = 1.0  # of a share in the first policy, in levels
    rate: float = 1.0  # step of the mean along its natural gradient
    deviation_rate: float = 0.1  # … and of the logarithm of the deviation
    per: Per = "sublayer"  # what departs together: matrix, sublayer or block

    def __post_init__(self) -> None:
        if self.population < 4 or self.population % 2 or not 0 < self.share <= 1:
            raise RecipeError(f"population = {self.population}, share = {self.share:g}: expected an even number of at least 4 draws, and "
                              "a share of the search text in (0, 1].")
        if min(self.deviation, self.rate) <= 0 or self.deviation_rate < 0:
            raise RecipeError(f"deviation = {self.deviation:g}, rate = {self.rate:g}, deviation_rate = {self.deviation_rate:g}: "
                              "expected a deviation and a rate above 0, and no negative rate of the deviation.")

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        groups = len(space.groups(self.per))
        return State(space, first, numpy.random.default_rng(seed), numpy.zeros(groups), numpy.full(groups, self.deviation))

    def ask(self, state: State) -> list[Query]:
        if state.draws is None:
            return [Query(state.space.departing(state.first, self.per, state.mean) if state.updates else state.first)]
        drawn = [state.space.departing(state.first, self.per, state.mean + state.deviation * draw) for draw in state.draws]
        return [Query(candidate, self.share, state.updates) for candidate in drawn]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        if state.draws is None:
            half = state.rng.standard_normal((self.population // 2, len(state.mean)))
            return replace(state, draws=numpy.concatenate([half, -half]))
        utilities = _utilities([trial.value for trial in trials])
        mean = state.mean + self.rate * state.deviation * (utilities @ state.draws)
        spread = numpy.exp(self.deviation_rate / 2 * (utilities @ (state.draws**2 - 1)))
        deviation = numpy.maximum(state.deviation * spread, self.deviation / 4)  # below, all draws are the same levels
        return replace(state, mean=mean - mean.mean(), deviation=deviation, draws=None, updates=state.updates + 1)


def _utilities(values: Sequence[float]) -> Array:
    """Of draws by their ranks, the best first: falling with the logarithm of the rank, 0 for the worse half, less their mean."""
    ranks = numpy.argsort(numpy.argsort(numpy.array(values), kind="stable"))
    found = numpy.maximum(math.log(len(values) / 2 + 1) - numpy.log(ranks + 1.0), 0.0)
    utilities: Array = found / found.sum() - 1 / len(values)
    return utilities

