"""Improve another weighted sum of the objectives at every question, by a Gaussian process (RS-BO)."""

import random
from dataclasses import dataclass

import numpy

from ...errors import RecipeError
from ..explored import Explored, remember
from ..gaussian import prepared, shares, suggested
from ..genome import Genome
from ..space import Candidate
from . import Question

__all__ = ["RSBO"]


@dataclass(frozen=True)
class RSBO:
    """Random linear scalarisation (Paria et al. 2019) as Klein et al. 2024 compare it: expected improvement of a sum
    whose weights are drawn anew, all mixtures as likely, by Optuna's GPSampler. Objectives are their quantiles among the trials."""

    startup: int = 10  # candidates before the first model, of all sizes

    tell = staticmethod(remember)

    def __post_init__(self) -> None:
        if self.startup < 2:
            raise RecipeError(f"startup = {self.startup}: expected at least 2.")

    def init(self, genome: Genome, seed: int) -> Explored:
        return prepared("rsbo", genome, seed)

    def ask(self, state: Explored, count: int) -> list[Question]:
        if len(state.trials) < self.startup:
            return state.spread(min(count, self.startup - len(state.trials)))
        values = shares(state)

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            weights = numpy.array([rng.expovariate(1.0) for _ in range(values.shape[1])])
            return suggested(state, (values @ (weights / weights.sum()))[:, None], rng, asked)

        return state.questions(count, propose)
