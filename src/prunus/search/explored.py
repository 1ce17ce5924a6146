"""What an architecture search has looked at, and candidates that it has not."""

import itertools
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy
from numpy.typing import NDArray

from .genome import Genome
from .searchers import Question, Trial
from .space import Array, Candidate

__all__ = ["Explored", "Propose", "begin", "changed", "fresh", "remember", "sized", "unseen"]

_TRIES = 50  # draws before candidates are listed instead: when all of these are taken, so many are that few are left
_DRAWS = 10  # for a stratum, before another one is tried: there may be no candidate of such a size
Propose = Callable[[random.Random, list[Candidate]], Candidate | None]  # from what this batch has already


@dataclass(frozen=True)
class Explored:
    """All that a searcher without a library of its own has to know."""

    genome: Genome
    seed: int
    trials: tuple[Trial, ...] = ()

    @cached_property
    def seen(self) -> frozenset[Candidate]:
        """Candidates with a trial."""
        return frozenset(trial.candidate for trial in self.trials)

    @cached_property
    def values(self) -> Array:
        """Of every trial and objective; infinite where a trial failed."""
        return numpy.array([trial.values for trial in self.trials])

    @cached_property
    def answered(self) -> NDArray[numpy.bool_]:
        """Which trials have values."""
        return numpy.array([not trial.failed for trial in self.trials])

    def rng(self) -> random.Random:
        """What the next questions are drawn with: a new generator after every answer, so that `ask` changes nothing."""
        return random.Random(f"{self.seed} {len(self.trials)}")

    def questions(self, count: int, propose: Propose = lambda rng, asked: None) -> list[Question]:
        """`count` new candidates, as many as there are; the genome draws where nothing new is proposed."""
        rng, taken = self.rng(), set(self.seen)
        asked: list[Candidate] = []
        while len(asked) < count:
            candidate = propose(rng, asked)
            if candidate is None or candidate in taken:
                candidate = fresh(self.genome, taken, rng)
            if candidate is None:
                break
            taken.add(candidate)
            asked.append(candidate)
        return [Question(candidate) for candidate in asked]

    def spread(self, count: int, strata: int = 10) -> list[Question]:
        """New candidates of all sizes: every one is for the stratum of what remains that has the fewest so far."""
        low, high = self.genome.remaining(self.genome.smallest), self.genome.remaining(self.genome.largest)

        def stratum(candidate: Candidate) -> int:
            share = (self.genome.remaining(candidate) - low) / ((high - low) or 1.0)
            return min(max(int(share * strata), 0), strata - 1)

        full = [stratum(candidate) for candidate in self.seen]

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            taken = {*self.seen, *asked}
            for place in sorted(range(strata), key=full.count):
                for _ in range(_DRAWS):
                    candidate = sized(self.genome, low + (high - low) * (place + rng.random()) / strata, rng)
                    if candidate not in taken and stratum(candidate) == place:
                        full.append(place)
                        return candidate
            return None

        return self.questions(count, propose)


def begin(searcher: object, genome: Genome, seed: int) -> Explored:
    """A searcher's `init`."""
    return Explored(genome, seed)


def remember(state: Explored, trials: Sequence[Trial]) -> Explored:
    """A searcher's `tell`."""
    return replace(state, trials=(*state.trials, *trials))


def fresh(genome: Genome, taken: Container[Candidate], rng: random.Random) -> Candidate | None:
    """A candidate that is not taken, drawn by the genome; by nobody's preference where the genome draws none, None when all are."""
    for _ in range(_TRIES):
        candidate = genome.draw(rng)
        if candidate not in taken:
            return candidate
    return unseen(genome.sizes, taken, rng)


def unseen(sizes: Sequence[int], taken: Container[Candidate], rng: random.Random) -> Candidate | None:
    """Any candidate that is not taken, each as likely as the others."""
    for _ in range(_TRIES):
        candidate = tuple(rng.randrange(size) for size in sizes)
        if candidate not in taken:
            return candidate
    left = [candidate for candidate in itertools.product(*map(range, sizes)) if candidate not in taken]
    return rng.choice(left) if left else None


def changed(candidate: Candidate, sizes: Sequence[int], taken: Container[Candidate], rng: random.Random) -> Candidate | None:
    """A candidate with one variable of another value, that is not taken; None when all of them are."""
    free = [index for index, size in enumerate(sizes) if size > 1]
    for _ in range(_TRIES if free else 0):
        index = rng.choice(free)
        value = (candidate[index] + rng.randrange(1, sizes[index])) % sizes[index]
        found = (*candidate[:index], value, *candidate[index + 1 :])
        if found not in taken:
            return found
    every = ((*candidate[:index], value, *candidate[index + 1 :]) for index in free for value in range(sizes[index]))
    left = [found for found in every if found != candidate and found not in taken]
    return rng.choice(left) if left else None


def sized(genome: Genome, wanted: float, rng: random.Random) -> Candidate:
    """A draw of which about as much remains as is wanted: a number for every variable, all raised to one power."""
    numbers = [1.0 - rng.random() for _ in genome.sizes]  # above 0

    def raised(power: float) -> Candidate:
        return tuple(min(int(number**power * size), size - 1) for number, size in zip(numbers, genome.sizes, strict=True))

    most, least = 2.0**-12, 2.0**12  # powers with which nearly all, and nearly nothing, remains
    for _ in range(25):
        middle = (most * least) ** 0.5
        most, least = (middle, least) if genome.remaining(raised(middle)) >= wanted else (most, middle)
    return raised(rng.choice((most, least)))
