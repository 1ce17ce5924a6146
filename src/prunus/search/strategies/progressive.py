"""Take the branch that matters least for its size, look at all others again, and so on (normalised relative impact)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ...allocation import Denominator, Per, cost_of, per_unit
from ...errors import RecipeError
from ..space import Candidate, Query, Space, Trial

__all__ = ["Progressive"]

_WORST = 600.0  # nats: the impact of what is worse, or of what is no number
_LAST = 1e300  # above every impact per unit of cost


@dataclass(frozen=True)
class State:
    """What has gone so far, and what is known of taking one group more."""

    space: Space
    first: Candidate
    groups: tuple[tuple[int, ...], ...]  # sites that go together
    begun: bool = False
    ended: bool = False  # whether the answer has been valued
    here: Trial | None = None  # the candidate that has lost what has gone, and its value; None until the dense one is valued
    impacts: tuple[float, ...] = ()  # of every group, as last seen; infinite once it has gone
    values: tuple[float, ...] = ()  # of the candidates without each group, of this round
    seen: frozenset[int] = frozenset()  # groups that were looked at in this round
    asked: tuple[int, ...] = ()  # groups that are being looked at


@dataclass(frozen=True)
class Progressive:
    """Heterogeneous sublayers (OpenReview qG1S5eXMzx), its search as far as it is known: with v the value of what is left (a
    logarithm of perplexity, or a divergence), the impact of a group is exp(v without it - v) - 1 per unit of `denominator`;
    the least goes, and then all are looked at again, until the budget is met.

    Where impacts are not above 0 the largest group goes first: per weight the smallest would win. Groups that save nothing of the
    denominator, as MLPs do of the cache, go when all others have gone and the budget, which counts weights, is still not met.

    `lazy` looks only at groups whose impact, as last seen, is below `margin` times the best new one, and at those in the block that
    has just lost one and its neighbours, whose impacts may fall by much: as long as no other falls by more than the margin while
    branches go, what is removed is the same. Without `progressive` all impacts are those on the dense model (one-shot); with
    per = "block", denominator = "none" and perplexity as the objective these are the scores of Shortened LLaMA (Kim et al. 2024).
    Its authors' code keeps the first four and the last two blocks, whatever the score; `protected` keeps as many at either end.
    """

    per: Per = "sublayer"  # what goes together: sublayer, or block (SLEB, Song et al. 2024, with denominator "none")
    only: Literal["all", "attention", "mlp"] = "all"  # which branches may go
    denominator: Denominator = "weights"  # of the impact: none, weights, latency or cache
    progressive: bool = True  # look again after every removal
    lazy: bool = True  # only at what may be the least
    margin: float = 1.5  # of lazy looks: an impact may have fallen by such a factor since it was last seen
    protected: int = 0  # blocks at either end that are left alone

    ends: ClassVar[bool] = True  # when the budget is met, whatever the number of looks

    def __post_init__(self) -> None:
        if self.per == "matrix" or self.protected < 0:
            raise RecipeError(f"per = {self.per!r}, protected = {self.protected}: expected 'sublayer' or 'block', and no negative number "
                              "of blocks.")
        if self.margin < 1:
            raise RecipeError(f"margin = {self.margin:g}: expected at least 1.")

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        last = max(site.block for site in space.sites)
        free = [index for index, site in enumerate(space.sites) if self.protected <= site.block <= last - self.protected
                and self.only in ("all", getattr(site, "kind", ""))]
        groups = tuple(found for group in space.groups(self.per) if (found := tuple(index for index in group if index in free)))
        if sum(space.gone[index][-1] for index in free) < space.required:
            able = sum(space.gone[index][-1] for index in free) / sum(site.size for site in space.sites)
            raise RecipeError(f"strategy 'progressive': with only = {self.only!r} and protected = {self.protected}, {able:.1%} of the "
                              f"weights may go, and the budget wants {space.budget.sparsity:.1%}.")
        return State(space, first, groups)

    def ask(self, state: State) -> list[Query]:
        if not state.begun:
            return [Query(state.first)]
        if state.here is None:
            return [Query((0,) * len(state.space.sites), partial=True)]
        if state.asked:
            return [Query(self._without(state, group), partial=True) for group in state.asked]
        return [] if state.ended else [Query(state.here.candidate)]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        if not state.begun:
            return replace(state, begun=True)
        if state.here is None:
            count = len(state.groups)
            return replace(state, here=trials[0], impacts=(-math.inf,) * count, values=(math.inf,) * count, asked=tuple(range(count)))
        if not state.asked:  # the answer is valued: nothing more to ask
            return replace(state, ended=True)
        impacts, values = list(state.impacts), list(state.values)
        for group, trial in zip(state.asked, trials, strict=True):
            impacts[group], values[group] = self._impact(state, group, trial.value), trial.value
        state = replace(state, impacts=tuple(impacts), values=tuple(values), seen=state.seen | set(state.asked))
        return self._onwards(state)

    def _onwards(self, state: State) -> State:
        """Look at more groups while one of them may be the least; then take the least, and begin a new round or end."""
        while True:
            left = [group for group, impact in enumerate(state.impacts) if impact < math.inf]
            unseen = sorted((group for group in left if group not in state.seen), key=lambda group: state.impacts[group])
            best = min((group for group in left if group in state.seen), key=lambda group: state.impacts[group], default=None)
            if self.progressive and unseen and not (self.lazy and best is not None and self._above(state, unseen[0], best)):
                return replace(state, asked=(unseen[0],) if self.lazy else tuple(unseen))
            if best is None:
                best = min(left, key=lambda group: state.impacts[group])
            state = self._taken(state, best)
            assert state.here is not None
            if state.space.met(state.here.candidate):
                return replace(state, asked=())

    def _above(self, state: State, unseen: int, best: int) -> bool:
        """Whether the impact of a group, as last seen, cannot have fallen below the best new one."""
        least = state.impacts[best]
        return state.impacts[unseen] >= least + (self.margin - 1) * abs(least)

    def _taken(self, state: State, group: int) -> State:
        impacts = list(state.impacts)
        if self.progressive:
            near = {state.space.sites[index].block + step for index in state.groups[group] for step in (-1, 0, 1)}
            impacts = [-math.inf if impact < math.inf and near & {state.space.sites[index].block for index in members} else impact
                       for impact, members in zip(impacts, state.groups, strict=True)]
        impacts[group] = math.inf
        here = Trial(self._without(state, group), state.values[group])
        return replace(state, here=here, impacts=tuple(impacts), seen=frozenset())

    def _without(self, state: State, group: int) -> Candidate:
        assert state.here is not None
        chosen = list(state.here.candidate)
        for index in state.groups[group]:
            chosen[index] = len(state.space.levels) - 1
        return tuple(chosen)

    def _impact(self, state: State, group: int, value: float) -> float:
        assert state.here is not None
        impact = math.expm1(min(value - state.here.value, _WORST)) if math.isfinite(value) else math.expm1(_WORST)
        if self.denominator == "none":
            return impact
        cost = cost_of([state.space.sites[index] for index in state.groups[group]], self.denominator)
        if cost == 0:  # after all that save something, by the impact alone
            return _LAST * (2 + impact / (1 + abs(impact)))
        return per_unit(impact, cost)
