"""Which sub-networks a super-network training draws: as the genome draws them, by what they cost, or by what they are worth."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..errors import RecipeError
from .genome import Genome
from .pareto import ranks
from .space import Candidate

__all__ = ["Loss", "Sampling"]

Loss = Callable[[Candidate], float]  # of a sub-network, on a batch, as it is now

_TRIES = 100  # draws for one that costs what it should


@dataclass(frozen=True)
class Sampling:
    """Draws candidates; with equal arguments, the same ones.

    By "strata", what is left (`Genome.remaining`) is divided evenly between the least and all of it into as many strata as there are
    weights; one is drawn by its weight, and then candidates until one lies in it, the nearest of 100 if none does.
    By "pareto", `pool` candidates are looked at on a part of the batch, without gradients, and ranked by loss and by what is left:
    rank 0 are those that none other beats in both, and the ranks behind are those without the ranks before. Candidates are drawn
    without replacement, one of a rank half as likely as one of the rank before (after AttentiveNAS, Wang et al. 2021, which takes the
    best, or the worst, of some that cost alike).
    """

    by: Literal["uniform", "strata", "pareto"] = "uniform"  # uniform: as the genome draws
    strata: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)  # weights of the strata, from the cheapest up
    pool: int = 6  # candidates that are ranked

    def __post_init__(self) -> None:
        if not self.strata or min(self.strata) < 0 or not any(self.strata) or self.pool < 2:
            raise RecipeError(f"sampling: strata = {list(self.strata)}, pool = {self.pool}: expected weights of at least one stratum, none "
                              "negative, not all 0, and at least 2 candidates.")

    def draw(self, genome: Genome, count: int, rng: random.Random, loss: Loss) -> list[Candidate]:
        """So many candidates; `loss` is asked of those that are ranked."""
        match self.by:
            case "uniform":
                return [genome.draw(rng) for _ in range(count)]
            case "strata":
                return [self._in_stratum(genome, rng) for _ in range(count)]
            case "pareto":
                return self._ranked(genome, count, rng, loss)

    def _in_stratum(self, genome: Genome, rng: random.Random) -> Candidate:
        least = genome.remaining(genome.smallest)
        width = (genome.remaining(genome.largest) - least) / len(self.strata)
        low = least + width * rng.choices(range(len(self.strata)), self.strata)[0]
        best, away = genome.smallest, float("inf")
        for _ in range(_TRIES):
            found = genome.draw(rng)
            left = genome.remaining(found)
            distance = max(low - left, left - low - width, 0.0)
            if distance < away:
                best, away = found, distance
            if distance <= 0:
                break
        return best

    def _ranked(self, genome: Genome, count: int, rng: random.Random, loss: Loss) -> list[Candidate]:
        pool = [genome.draw(rng) for _ in range(max(self.pool, count))]
        weights = [0.5**rank for rank in ranks([(loss(candidate), genome.remaining(candidate)) for candidate in pool]).tolist()]
        chosen = []
        for _ in range(count):
            place = rng.choices(range(len(pool)), weights)[0]
            chosen.append(pool.pop(place))
            del weights[place]
        return chosen
