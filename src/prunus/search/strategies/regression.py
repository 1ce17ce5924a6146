"""Value random sub-models and regress their values on what is gone from them: forward passes alone (Bonsai, Dery et al. 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy

from ...allocation import Denominator, Per, cost_of, per_unit
from ...errors import RecipeError
from ..policy import numbers
from ..space import Array, Candidate, Query, Space, Trial

__all__ = ["Regression"]


@dataclass(frozen=True)
class State:
    """What has gone, by group, and the sub-models whose values it waits for."""

    space: Space
    first: Candidate
    seed: int
    gone: Any  # by group: whether it has gone
    draws: Any = None  # by draw and group: whether it goes for a look; None before the first round and behind the last
    rounds: int = 0
    answered: int = 0  # whole candidates: the first, and the answer


@dataclass(frozen=True)
class Regression:
    """In every round `masks` sub-models are drawn, from which groups go at random until `fraction` of the weights has gone; a ridge
    regression on what is gone from them says what each group adds to the value; and the groups that add least go, until as
    much has gone for good (sections 3 and 3.1 of the paper). Of matrices and channels, a group that goes has the last level.

    Departs from the paper: the prior is the first candidate, whose groups are drawn more often, in the place of Wanda's scores, and
    rules nothing out; values are divergences or logarithms of perplexities, and taken relative to the model of the round,
    so that the regression needs no constant and is solved in closed form with one ridge.
    """

    masks: int = 200  # sub-models per round
    share: float = 0.125  # of the search text that they are valued on; another part in every round
    fraction: float = 0.05  # of the weights, that goes in a round
    certainty: float = 0.5  # how far draws lean to the first candidate, from 0 (all alike) to below 1
    ridge: float = 0.01  # added to the Gram's diagonal, as a fraction of its mean
    denominator: Denominator = "none"  # of what a group adds to the value: none (as in the paper), weights, latency or cache
    per: Per = "sublayer"  # what goes together: matrix, sublayer or block

    ends: ClassVar[bool] = True  # when the budget is met

    def __post_init__(self) -> None:
        if self.masks < 1 or not 0 < self.share <= 1 or not 0 < self.fraction <= 1:
            raise RecipeError(f"masks = {self.masks}, share = {self.share:g}, fraction = {self.fraction:g}: expected at least one mask, "
                              "and a share of the search text and a fraction of the weights in (0, 1].")
        if not 0 <= self.certainty < 1 or self.ridge < 0:
            raise RecipeError(f"certainty = {self.certainty:g}, ridge = {self.ridge:g}: expected a certainty in [0, 1) and no negative "
                              "ridge.")

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        return State(space, first, seed, numpy.zeros(len(space.groups(self.per)), dtype=bool))

    def ask(self, state: State) -> list[Query]:
        if state.draws is not None:
            looks = [state.gone, *(state.gone | draw for draw in state.draws)]
            return [Query(state.space.without(goes, self.per), self.share, state.rounds, partial=True) for goes in looks]
        whole = [state.first, state.space.without(state.gone, self.per)]
        return [Query(candidate) for candidate in whole[state.answered : state.answered + 1]]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        if state.draws is None:
            state = replace(state, answered=state.answered + 1)
            return self._drawn(state) if state.answered == 1 else state
        values = numbers(numpy.array([trial.value for trial in trials]))
        added = _regressed(state.draws.astype(float), values[1:] - values[0], self.ridge)
        return self._drawn(replace(state, gone=self._taken(state, added), rounds=state.rounds + 1))

    def _drawn(self, state: State) -> State:
        """With the sub-models of the next round, if the budget is not met yet."""
        if state.space.met(state.space.without(state.gone, self.per)):
            return replace(state, draws=None)
        width, weights = state.space.spans(self.per)[1], state.space.leaning(state.first, self.per, self.certainty) + 1e-9
        # ordered by a random time that is short where the weight is large, groups come as drawn one by one without replacement
        times = numpy.random.default_rng((state.seed, state.rounds)).exponential(size=(self.masks, len(width))) / weights
        times[:, state.gone] = numpy.inf
        return replace(state, draws=numpy.array([self._until(order, width, state) for order in times.argsort(axis=1, kind="stable")]))

    def _until(self, order: Any, width: Array, state: State) -> Any:
        """The first groups in an order, of those that are left, that make up a round's fraction."""
        left = order[~state.gone[order]]
        before = numpy.cumsum(width[left]) - width[left]
        goes = numpy.zeros(len(width), dtype=bool)
        goes[left[before < self._step(state) - 1e-6]] = True
        return goes

    def _step(self, state: State) -> float:
        return self.fraction * sum(site.size for site in state.space.sites)

    def _taken(self, state: State, added: Array) -> Any:
        """What has gone when the groups that add least have gone too; those that were never drawn are not known, and come last."""
        costs = [cost_of([state.space.sites[index] for index in group], self.denominator) for group in state.space.groups(self.per)]
        seen = state.draws.any(0)

        def order(group: int) -> tuple[bool, bool, float]:
            value, cost = float(added[group]), costs[group]
            return not seen[group], cost == 0, value if cost == 0 or self.denominator == "none" else per_unit(value, cost)

        low, width = state.space.spans(self.per)
        needed = min(state.space.required - float(low.sum() + width @ state.gone), self._step(state))
        left = sorted((group for group in range(len(width)) if not state.gone[group]), key=order)
        gone = state.gone.copy()
        for group in left:
            if width @ (gone & ~state.gone) >= needed - 1e-6:
                break
            gone[group] = True
        return gone


def _regressed(gone: Array, values: Array, ridge: float) -> Array:
    """The least sum of squares of gone @ x - values, with `ridge` times the mean of the diagonal of gone^T gone on x^2."""
    damping = numpy.sqrt(ridge * numpy.square(gone).sum() / gone.shape[1])
    rows = numpy.concatenate([gone, damping * numpy.eye(gone.shape[1])])
    found: Array = numpy.linalg.lstsq(rows, numpy.concatenate([values, numpy.zeros(gone.shape[1])]), rcond=None)[0]
    return found
