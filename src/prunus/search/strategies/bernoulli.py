"""Learned masks without back-propagation: every branch stays with a probability, and forward passes alone teach it (Gao et al. 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy

from ...allocation import Per
from ...errors import RecipeError
from ..policy import drawn, numbers, slope
from ..space import Array, Candidate, Query, Space, Trial, shifted

__all__ = ["Bernoulli"]


@dataclass(frozen=True)
class State:
    """The probabilities, and the draws whose values it waits for."""

    space: Space
    first: Candidate
    rng: Any  # numpy's generator
    going: Array  # of every group: the probability that it goes
    recent: tuple[float, ...] = ()  # mean values of the last updates, the baseline
    draws: Array | None = None  # 1 where a group goes; None while the policy's own answer is valued
    updates: int = 0


@dataclass(frozen=True)
class Bernoulli:
    """Every group goes with a probability of its own: it then has the last level, and otherwise the first. The policy gradient of
    the expected value moves the probabilities, scaled as in the authors' code by the deviation of a draw; they are then projected
    to the nearest ones that meet the budget in expectation (section 3). The answer takes the groups that go most surely.

    Departs from the paper: draws come in antithetic pairs, which share their uniform numbers and so take some noise out; the
    baseline is of the current draws as long as there is none of earlier updates; and probabilities begin with the allocator's
    answer in the place of a metric's scores.
    """

    population: int = 8  # draws per update, in pairs
    share: float = 0.125  # of the search text that draws are valued on
    rate: float = 0.2  # of the probabilities, per update
    certainty: float = 0.2  # how far the first probabilities lean to the first candidate, from 0 (all alike) to 1
    window: int = 5  # updates that the baseline is the mean of
    per: Per = "sublayer"  # what goes together: matrix, sublayer or block

    def __post_init__(self) -> None:
        if self.population < 2 or self.population % 2 or not 0 < self.share <= 1 or self.window < 1:
            raise RecipeError(f"population = {self.population}, share = {self.share:g}, window = {self.window}: expected an even number of "
                              "draws, a share of the search text in (0, 1], and a window of at least 1.")
        if self.rate <= 0 or not 0 <= self.certainty < 1:
            raise RecipeError(f"rate = {self.rate:g}, certainty = {self.certainty:g}: expected a rate above 0 and a certainty in [0, 1).")

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        start = space.leaning(first, self.per, self.certainty)
        return State(space, first, numpy.random.default_rng(seed), _projected(start, space, self.per))

    def ask(self, state: State) -> list[Query]:
        if state.draws is None:
            return [Query(self._answer(state) if state.updates else state.first)]
        return [Query(state.space.without(draw, self.per), self.share, state.updates, partial=True) for draw in state.draws]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        if state.draws is None:
            return replace(state, draws=drawn(state.going, self.population, state.rng))
        values = numbers(numpy.array([trial.value for trial in trials]))
        recent = (*state.recent, float(values.mean()))[-self.window :]
        baseline = float(numpy.mean(recent[:-1] or recent))
        spread = float(values.std()) or 1.0  # so that the rate does not depend on the scale of the values
        gradient = slope(state.going, state.draws, (values - baseline) / spread)
        going = _projected(state.going - self.rate * gradient, state.space, self.per)
        return replace(state, going=going, recent=recent, draws=None, updates=state.updates + 1)

    def _answer(self, state: State) -> Candidate:
        shares = {}
        for group, going in zip(state.space.groups(self.per), state.going, strict=True):
            for index in group:
                row, site = state.space.gone[index], state.space.sites[index]
                shares[site.name] = (row[0] + going * (row[-1] - row[0])) / site.size
        return state.space.nearest(shares)


def _projected(going: Array, space: Space, per: Per) -> Array:
    """The nearest probabilities, all moved by one number and cut off at 0 and 1, with which as much goes as must, on average."""
    low, width = space.spans(per)
    return shifted(going, numpy.zeros_like(going), numpy.ones_like(going), width, space.required - float(low.sum()))
