"""What an architecture search has looked at, and candidates that it has not."""

import itertools
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy

from .genome import Genome
from .searchers import Question, Trial
from .space import Array, Candidate

__all__ = ["Explored", "Propose", "begin", "changed", "fresh", "remember", "unseen"]

_TRIES = 50  # draws before candidates are listed instead: when all of these are taken, so many are that few are left
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
