"""Genomes without a model, and objectives whose front is known."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prunus.search.searchers import Question
from prunus.search.space import Candidate

Objectives = Callable[[Question], tuple[float, ...]]


@dataclass(frozen=True)
class Toy:
    """Variables that weigh alike."""

    sizes: tuple[int, ...]

    @property
    def smallest(self) -> Candidate:
        return (0,) * len(self.sizes)

    @property
    def largest(self) -> Candidate:
        return tuple(size - 1 for size in self.sizes)

    def draw(self, rng: random.Random) -> Candidate:
        return tuple(rng.randrange(size) for size in self.sizes)

    def remaining(self, candidate: Candidate) -> float:
        parts = levels(self, candidate)
        return sum(parts) / len(parts)

    @contextmanager
    def worn(self, model: Any, candidate: Candidate) -> Iterator[None]:
        yield


def levels(genome: Toy, candidate: Candidate) -> list[float]:
    """Every variable's value as a fraction of its largest one."""
    return [value / max(size - 1, 1) for value, size in zip(candidate, genome.sizes, strict=True)]


def priced(genome: Toy, scale: float = 1.0) -> Objectives:
    """Cost, and a loss to which the first variables add most: the front has the last ones small and the first ones large."""
    def value(question: Question) -> tuple[float, float]:
        lost = [(1 - level) * 3.0**-index for index, level in enumerate(levels(genome, question.candidate))]
        return scale * sum(lost), genome.remaining(question.candidate)
    return value


def three(genome: Toy) -> Objectives:
    """The same, and how many values differ from their neighbour's."""
    def value(question: Question) -> tuple[float, ...]:
        steps = zip(question.candidate, question.candidate[1:], strict=False)
        return (*priced(genome)(question), float(sum(one != other for one, other in steps)))
    return value
