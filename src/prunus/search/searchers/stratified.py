"""Draw equally many candidates of every size."""

import random
from dataclasses import dataclass

from ...errors import RecipeError
from ..explored import Explored, begin, remember
from ..genome import Genome
from ..space import Candidate
from . import Question

__all__ = ["Stratified"]

_DRAWS = 10  # for a stratum, before another one is tried: there may be no candidate of such a size


@dataclass(frozen=True)
class Stratified:
    """Random search whose candidates are spread over what remains of the model, where a genome's own draws may all be of about half.

    A draw takes a number in [0, 1] for every variable and raises all of them to one power, with which as much remains as is wanted;
    the next draw is for the stratum that has the fewest candidates.
    """

    strata: int = 10  # equal intervals of what remains, from the smallest sub-network to the largest

    init, tell = begin, staticmethod(remember)

    def __post_init__(self) -> None:
        if self.strata < 1:
            raise RecipeError(f"strata = {self.strata}: expected at least one.")

    def ask(self, state: Explored, count: int) -> list[Question]:
        genome = state.genome
        low, high = genome.remaining(genome.smallest), genome.remaining(genome.largest)

        def stratum(candidate: Candidate) -> int:
            share = (genome.remaining(candidate) - low) / ((high - low) or 1.0)
            return min(max(int(share * self.strata), 0), self.strata - 1)

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            taken = {*state.seen, *asked}
            full = [stratum(candidate) for candidate in taken]
            for place in sorted(range(self.strata), key=full.count):
                for _ in range(_DRAWS):
                    candidate = _sized(genome, low + (high - low) * (place + rng.random()) / self.strata, rng)
                    if candidate not in taken and stratum(candidate) == place:
                        return candidate
            return None

        return state.questions(count, propose)


def _sized(genome: Genome, wanted: float, rng: random.Random) -> Candidate:
    """A draw of which about as much remains as is wanted."""
    numbers = [1.0 - rng.random() for _ in genome.sizes]  # above 0

    def raised(power: float) -> Candidate:
        return tuple(min(int(number**power * size), size - 1) for number, size in zip(numbers, genome.sizes, strict=True))

    most, least = 2.0**-12, 2.0**12  # powers with which nearly all, and nearly nothing, remains
    for _ in range(25):
        middle = (most * least) ** 0.5
        most, least = (middle, least) if genome.remaining(raised(middle)) >= wanted else (most, middle)
    return raised(rng.choice((most, least)))
