"""Draw candidates at random, each independent of the others."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..space import Candidate, Query, Space, Trial

__all__ = ["Random"]


@dataclass(frozen=True)
class State:
    """Where the draws come from."""

    space: Space
    rng: random.Random
    first: Candidate
    asked: bool = False


@dataclass(frozen=True)
class Random:
    """The baseline of every search: the first candidate, then draws from the whole space."""

    batch: int = 8  # candidates asked for at a time

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        return State(space, random.Random(seed), first)

    def ask(self, state: State) -> list[Query]:
        if not state.asked:
            return [Query(state.first)]
        return [Query(state.space.draw(state.rng)) for _ in range(self.batch)]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        return State(state.space, state.rng, state.first, asked=True)
