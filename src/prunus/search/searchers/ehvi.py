"""Look where the hypervolume is expected to grow most, by one Gaussian process per objective (EHVI; Daulton et al. 2020)."""

from dataclasses import dataclass

from ..explored import Explored, remember
from ..gaussian import check_startup, prepared, questions, scores
from ..genome import Genome
from . import Question

__all__ = ["EHVI"]


@dataclass(frozen=True)
class EHVI:
    """Expected hypervolume improvement, its logarithm (Ament et al. 2023), by Optuna's GPSampler. It takes a second or so
    per question, and knows what is being valued meanwhile."""

    startup: int = 10  # candidates before the first model, of all sizes

    tell = staticmethod(remember)

    def __post_init__(self) -> None:
        check_startup(self.startup)

    def init(self, genome: Genome, seed: int) -> Explored:
        return prepared("ehvi", genome, seed)

    def ask(self, state: Explored, count: int) -> list[Question]:
        return questions(state, self.startup, count, lambda rng: scores(state))
