"""Learned masks without back-propagation, channel by channel: every one stays with a probability (Gao et al. 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy

from ...errors import RecipeError
from ..channels import ChannelSpace
from ..policy import drawn, numbers, slope
from ..space import Array, Query, Trial

__all__ = ["Masks"]


@dataclass(frozen=True)
class State:
    """The probabilities, and the draws whose values it waits for."""

    space: ChannelSpace
    rng: Any  # numpy's generator
    going: Array  # of every channel: the probability that it goes
    draws: Array | None = None  # 1 where a channel goes; None while the policy's own answer is valued
    updates: int = 0


@dataclass(frozen=True)
class Masks:
    """Every MLP channel, and every key/value group with its queries, goes with a probability of its own. The policy gradient of
    the expected value moves the probabilities, scaled as in the authors' code by the deviation of a draw; they are then projected
    to the nearest ones with which as many channels, and as many groups, go on average as must (section 3). The answer takes those
    that go most surely. Probabilities begin at the order in which the solver's criterion would take channels, with the
    allocator's shares.

    Departs from the paper: draws come in antithetic pairs, and the baseline of a pair is the mean of the update's other pairs, not
    of the last updates, whose parts of the text were others.
    """

    population: int = 16  # draws per update, in pairs
    share: float = 0.1  # of the search text that draws are valued on
    rate: float = 0.02  # of the probabilities, per update
    steepness: float = 1.0  # with which the first probabilities follow the criterion
    answers: int = 10  # updates between two looks at the policy's own answer

    per_channel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.population < 4 or self.population % 2 or not 0 < self.share <= 1 or self.answers < 1:
            raise RecipeError(f"population = {self.population}, share = {self.share:g}, answers = {self.answers}: expected an even number "
                              "of at least 4 draws, a share of the search text in (0, 1], and at least 1 update.")
        if self.rate <= 0 or self.steepness <= 0:
            raise RecipeError(f"rate = {self.rate:g}, steepness = {self.steepness:g}: expected numbers above 0.")

    def init(self, space: ChannelSpace, first: Any, seed: int) -> State:
        return State(space, numpy.random.default_rng(seed), space.leaning(self.steepness))

    def ask(self, state: State) -> list[Query]:
        if state.draws is None:
            return [Query(state.space.answer(state.going))]
        return [Query(state.space.candidate(draw), self.share, state.updates, partial=True) for draw in state.draws]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        if state.draws is not None:
            values = numbers(numpy.array([trial.value for trial in trials]))
            spread = float(values.std()) or 1.0  # so that the rate does not depend on the scale of the values
            gradient = slope(state.going, state.draws, advantages(values) / spread)
            going = state.space.projected(state.going - self.rate * gradient)
            state = replace(state, going=going, draws=None, updates=state.updates + 1)
            if state.updates % self.answers == 0:
                return state
        return replace(state, draws=drawn(state.going, self.population, state.rng))


def advantages(values: Array) -> Array:
    """What a draw's value is above the mean of those that are not of its pair."""
    pairs = values.reshape(2, -1).sum(0)
    others = (pairs.sum() - pairs) / (len(values) - 2)
    return values - numpy.concatenate([others, others])
