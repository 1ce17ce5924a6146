"""Look where the hypervolume is expected to grow most, by a Gaussian process (EHVI; Emmerich et al. 2006)."""

import random
from dataclasses import dataclass

from ..explored import Explored, remember
from ..gaussian import check_startup, prepared, questions, scores, suggested
from ..genome import Genome, Told
from ..improvement import likeliest
from ..space import Candidate
from . import Question

__all__ = ["EHVI"]


@dataclass(frozen=True)
class EHVI:
    """Expected hypervolume improvement. What a sub-network costs is known without a look, so that with one quality (an error, a loss, a
    divergence) this alone is modelled, and costs are exact; a question takes a tenth of a second or so. With several qualities all
    objectives are modelled, by Optuna's GPSampler (its logarithm; Daulton et al. 2020, Ament et al. 2023), in a second or so. Knows
    what is being valued meanwhile."""

    startup: int = 10  # candidates before the first model, of all sizes

    tell = staticmethod(remember)

    def __post_init__(self) -> None:
        check_startup(self.startup)

    def init(self, genome: Genome, seed: int) -> Explored:
        return prepared("ehvi", genome, seed)

    def ask(self, state: Explored, count: int) -> list[Question]:
        told: Told | None = getattr(state.genome, "told", None)
        hidden = [index for index, value in enumerate(told(state.genome.largest)) if value is None] if told else []

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            if told and len(hidden) == 1:
                return likeliest(state, scores(state), told, hidden[0], rng, asked)
            return suggested(state, scores(state), rng, asked)

        return questions(state, self.startup, count, propose)
