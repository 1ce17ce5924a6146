"""Look where the hypervolume is expected to grow most, by one Gaussian process per objective (EHVI; Daulton et al. 2020)."""

import random
from dataclasses import dataclass

from ...errors import RecipeError
from ..explored import Explored, remember
from ..gaussian import prepared, scores, suggested
from ..genome import Genome
from ..space import Candidate
from . import Question

__all__ = ["EHVI"]


@dataclass(frozen=True)
class EHVI:
    """Expected hypervolume improvement, its logarithm (Ament et al. 2023), by Optuna's GPSampler. It takes a second or so
    per question, and knows what is being valued meanwhile."""

    startup: int = 10  # candidates before the first model, of all sizes

    tell = staticmethod(remember)

    def __post_init__(self) -> None:
        if self.startup < 2:
            raise RecipeError(f"startup = {self.startup}: expected at least 2.")

    def init(self, genome: Genome, seed: int) -> Explored:
        return prepared("ehvi", genome, seed)

    def ask(self, state: Explored, count: int) -> list[Question]:
        if len(state.trials) < self.startup:
            return state.spread(min(count, self.startup - len(state.trials)))
        values = scores(state)

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            return suggested(state, values, rng, asked)

        return state.questions(count, propose)
