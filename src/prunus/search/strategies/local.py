"""Climb: take a neighbour whenever it is better."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..space import Candidate, Query, Space, Trial

__all__ = ["Local"]


@dataclass(frozen=True)
class State:
    """Where the climb stands."""

    space: Space
    rng: random.Random
    here: Trial
    begun: bool = False


@dataclass(frozen=True)
class Local:
    """One neighbour at a time, on the whole search text; there is no way back down."""

    switches: int = 1  # sites that give a level more in one step

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        return State(space, random.Random(seed), Trial(first, float("inf")))

    def ask(self, state: State) -> list[Query]:
        if not state.begun:
            return [Query(state.here.candidate)]
        return [Query(state.space.neighbour(state.here.candidate, state.rng, self.switches))]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        return replace(state, here=min([state.here, *trials], key=lambda trial: trial.value), begun=True)
