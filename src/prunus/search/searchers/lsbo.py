"""Improve one fixed weighted sum of the objectives, by a Gaussian process (LS-BO)."""

from dataclasses import dataclass

from ..explored import Explored, remember
from ..gaussian import check_startup, prepared, questions, shares, suggested
from ..genome import Genome
from . import Question

__all__ = ["LSBO"]


@dataclass(frozen=True)
class LSBO:
    """Linear scalarisation as Klein et al. 2024 compare it: expected improvement of the mean of all objectives,
    each as its quantile among the trials, by Optuna's GPSampler. It finds one part of the front."""

    startup: int = 10  # candidates before the first model, of all sizes

    tell = staticmethod(remember)

    def __post_init__(self) -> None:
        check_startup(self.startup)

    def init(self, genome: Genome, seed: int) -> Explored:
        return prepared("lsbo", genome, seed)

    def ask(self, state: Explored, count: int) -> list[Question]:
        return questions(state, self.startup, count, lambda rng, asked: suggested(state, shares(state).mean(1, keepdims=True), rng, asked))
