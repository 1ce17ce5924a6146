"""Evolve a small population in which the oldest dies (regularised evolution; Real et al. 2019), with several objectives."""

import random
from dataclasses import dataclass

from ...errors import RecipeError
from ..explored import Explored, begin, changed, remember
from ..pareto import order
from ..space import Candidate
from . import Question

__all__ = ["MOREA"]


@dataclass(frozen=True)
class MOREA:
    """Of some members of the population, drawn at random, the first in non-dominated order has a child: one variable gets another
    value. The child takes the place of the oldest. MO-REA, as Klein et al. 2024 compare it."""

    population: int = 10  # the last candidates that were valued
    tournament: int = 5  # members that compete to be a parent

    init, tell = begin, staticmethod(remember)

    def __post_init__(self) -> None:
        if not 1 <= self.tournament <= self.population:
            raise RecipeError(f"population = {self.population}, tournament = {self.tournament}: expected a tournament of at least one "
                              "member, and of no more than the population has.")

    def ask(self, state: Explored, count: int) -> list[Question]:
        living = state.trials[-self.population :]
        if len(living) < self.population:
            return state.spread(min(count, self.population - len(living)))
        best_first = order(state.values[-self.population :]).tolist()

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            drawn = rng.sample(range(self.population), self.tournament)
            parent = living[min(drawn, key=best_first.index)].candidate
            return changed(parent, state.genome.sizes, {*state.seen, *asked}, rng)

        return state.questions(count, propose)
