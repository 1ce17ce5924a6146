"""Improve another weighted sum of the objectives at every question, by a Gaussian process (RS-BO)."""

import random
from dataclasses import dataclass

import numpy

from ..explored import Explored, remember
from ..gaussian import check_startup, prepared, questions, shares, suggested
from ..genome import Genome
from ..space import Array
from . import Question

__all__ = ["RSBO"]


@dataclass(frozen=True)
class RSBO:
    """Random linear scalarisation (Paria et al. 2019) as Klein et al. 2024 compare it: expected improvement of a sum
    whose weights are drawn anew, all mixtures as likely, by Optuna's GPSampler. Objectives are their quantiles among the trials."""

    startup: int = 10  # candidates before the first model, of all sizes

    tell = staticmethod(remember)

    def __post_init__(self) -> None:
        check_startup(self.startup)

    def init(self, genome: Genome, seed: int) -> Explored:
        return prepared("rsbo", genome, seed)

    def ask(self, state: Explored, count: int) -> list[Question]:
        return questions(state, self.startup, count, lambda rng, asked: suggested(state, _mixed(shares(state), rng), rng, asked))


def _mixed(values: Array, rng: random.Random) -> Array:
    """A weighted sum of the columns."""
    weights = numpy.array([rng.expovariate(1.0) for _ in range(values.shape[1])])
    mixed: Array = (values @ (weights / weights.sum()))[:, None]
    return mixed
