"""(1 + lambda) evolution by level switches that keep the budget (EvoPress; Sieberling et al. 2025)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...allocation import Per
from ...errors import RecipeError
from ..space import Candidate, Query, Space, Trial

__all__ = ["Evolution"]


@dataclass(frozen=True)
class State:
    """The parent, and what is left of the present generation."""

    space: Space
    rng: random.Random
    parent: Trial
    rung: int = 0  # of the present generation
    survivors: tuple[Candidate, ...] = ()
    begun: bool = False


@dataclass(frozen=True)
class Evolution:
    """Sieberling et al. 2025 (ICML), section 3: offspring are valued on little text first, and the best of them on more.

    Departs from the paper: levels may be exchanged between sites of different size, as the budget is kept in weights; the
    parent is valued again only on the whole text, where it is known.
    """

    offspring: int = 16  # per generation
    survivors: tuple[int, ...] = (4, 1)  # how many are left after each rung but the last
    shares: tuple[float, ...] = (0.125, 0.5, 1.0)  # of the search text, per rung
    switches: int = 3  # at most; the number is the smaller of two draws
    per: Per = "block"  # what is switched: matrix, sublayer or block

    def __post_init__(self) -> None:
        if len(self.survivors) + 1 != len(self.shares) or self.shares[-1] != 1.0 or self.offspring < 1:
            raise RecipeError(f"survivors = {list(self.survivors)}, shares = {list(self.shares)}: expected one more share than "
                              "survivors, the last 1, and at least one offspring.")

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        return State(space, random.Random(seed), Trial(first, float("inf")))

    def ask(self, state: State) -> list[Query]:
        if not state.begun:
            return [Query(state.parent.candidate)]
        if state.rung == 0:
            counts = [min(state.rng.randint(1, self.switches), state.rng.randint(1, self.switches)) for _ in range(self.offspring)]
            young = dict.fromkeys(state.space.neighbour(state.parent.candidate, state.rng, count, self.per) for count in counts)
            return [Query(candidate, self.shares[0]) for candidate in young]
        return [Query(candidate, self.shares[state.rung]) for candidate in state.survivors]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        if not state.begun:
            return replace(state, parent=trials[0], begun=True)
        ranked = sorted(trials, key=lambda trial: trial.value)
        if state.rung < len(self.survivors):
            left = tuple(trial.candidate for trial in ranked[: self.survivors[state.rung]])
            return replace(state, rung=state.rung + 1, survivors=left)
        better = ranked[0] if ranked[0].value <= state.parent.value else state.parent
        return replace(state, parent=better, rung=0, survivors=())
