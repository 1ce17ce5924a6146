"""Improve one fixed weighted sum of the objectives, by a Gaussian process (LS-BO)."""

import random
from dataclasses import dataclass

from ...errors import RecipeError
from ..explored import Explored, remember
from ..gaussian import prepared, shares, suggested
from ..genome import Genome
from ..space import Candidate
from . import Question

__all__ = ["LSBO"]


@dataclass(frozen=True)
class LSBO:
    """Linear scalarisation as Klein et al. 2024 compare it: expected improvement of the mean of all objectives,
    each as its quantile among the trials, by Optuna's GPSampler. It finds one part of the front."""

    startup: int = 10  # candidates before the first model, of all sizes

    tell = staticmethod(remember)

    def __post_init__(self) -> None:
        if self.startup < 2:
            raise RecipeError(f"startup = {self.startup}: expected at least 2.")

    def init(self, genome: Genome, seed: int) -> Explored:
        return prepared("lsbo", genome, seed)

    def ask(self, state: Explored, count: int) -> list[Question]:
        if len(state.trials) < self.startup:
            return state.spread(min(count, self.startup - len(state.trials)))
        values = shares(state).mean(1, keepdims=True)

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            return suggested(state, values, rng, asked)

        return state.questions(count, propose)
