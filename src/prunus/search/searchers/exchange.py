"""Give one branch what another loses: level switches (EvoPress; Sieberling et al. 2024), for several objectives."""

import random
from dataclasses import dataclass

from ...errors import RecipeError
from ..explored import Explored, begin, remember
from ..genome import Genome
from ..pareto import front
from ..space import Candidate
from . import Question

__all__ = ["Exchange"]

_FIRST = 10  # candidates of all sizes, before any is a parent
_TRIES = 20  # for a child that is not known


@dataclass(frozen=True)
class Exchange:
    """Of a member of the present front one variable is lowered, by a twelfth of its values at most, and another raised as far as no more
    weights remain than before, and then others by what is left over; once half of the time, else twice, and so on. For spaces with many
    variables and a search that begins well: there, what is better than a candidate is beside it, and of its own size. One that begins
    anywhere needs longer steps.

    A parent is the best by the first objective of those with no more weights than a size, drawn between `least` and `most`. So
    looks are spent where somebody will pick, and not on the many members of a front that differ in a noisy latency or in a few weights.
    """

    moves: int = 3  # exchanges at most from a member to its child
    least: float = 0.0  # the share of the weights that a parent has left, at least
    most: float = 1.0  # and at most

    init, tell = begin, staticmethod(remember)

    def __post_init__(self) -> None:
        if self.moves < 1 or not 0 <= self.least < self.most <= 1:
            raise RecipeError(f"moves = {self.moves}, least = {self.least:g}, most = {self.most:g}: expected at least 1, and two shares "
                              "in [0, 1], the first below the second.")

    def ask(self, state: Explored, count: int) -> list[Question]:
        if len(state.trials) < _FIRST:
            return state.spread(min(count, _FIRST - len(state.trials)))
        genome = state.genome
        parents = self._parents(state)
        free = [index for index, (low, size) in enumerate(zip(genome.smallest, genome.sizes, strict=True)) if low < size - 1]

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            if len(free) < 2 or not parents:
                return None
            for _ in range(_TRIES):
                size = max(rng.uniform(self.least, self.most), parents[0][0])
                child = parent = min((value, member) for remaining, value, member in parents if remaining <= size)[1]
                for place in range(self.moves):
                    if place == 0 or rng.random() < 0.5:
                        child = _exchanged(genome, child, genome.remaining(parent), rng.sample(free, len(free)), rng)
                if child not in state.seen and child not in asked:
                    return child
            return None

        return state.questions(count, propose)

    def _parents(self, state: Explored) -> list[tuple[float, float, Candidate]]:
        """Members of the front by size: what remains, the first objective, the candidate. All where none has an allowed size."""
        trials = [state.trials[index] for index in front(state.values)]
        members = sorted((state.genome.remaining(trial.candidate), trial.values[0], trial.candidate) for trial in trials)
        return [member for member in members if self.least <= member[0] <= self.most] or members


def _exchanged(genome: Genome, candidate: Candidate, limit: float, places: list[int], rng: random.Random) -> Candidate:
    """The first place has less, and the others in turn as much more as remains within the limit."""
    less, *others = places
    step = rng.randint(1, max(1, genome.sizes[less] // 12))
    child = list(candidate)
    child[less] = max(child[less] - step, genome.smallest[less])
    for more in others:
        low, high = child[more], genome.sizes[more] - 1
        while low < high:  # what remains grows with the value
            middle = (low + high + 1) // 2
            fits = genome.remaining((*child[:more], middle, *child[more + 1 :])) <= limit + 1e-9
            low, high = (middle, high) if fits else (low, middle - 1)
        child[more] = low
    return tuple(child)
