"""How far two rankings of the same things agree: in order, and in what goes first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Agreement", "agreements", "correlation", "counts", "first_to_go", "rank_correlation"]


@dataclass(frozen=True)
class Agreement:
    """Between a ranking by a metric on some sequences of a text, and on the whole sample of the same or another."""

    metric: str
    text: str
    sequences: int
    against: str  # the other text
    of: int  # its sequences
    correlation: float  # Spearman's
    overlap: float  # Jaccard's, of what goes: that is in both, over that is in either


def counts(sequences: int) -> tuple[int, ...]:
    """1, 2, 4, … and all."""
    return (*(2**power for power in range(sequences.bit_length()) if 2**power < sequences), sequences)


def agreements(metric: str, found: Mapping[str, Mapping[int, Sequence[float]]], sizes: Sequence[int], share: float) -> list[Agreement]:
    """`found` has values by text and number of sequences: part of a text is compared with all of it, and every text with the first.

    The first sequences of a text are among all of them, so a part that is large agrees for that reason alone.
    """
    first = next(iter(found))

    def between(one: tuple[str, int], other: tuple[str, int]) -> Agreement:
        values, others = (found[text][count] for text, count in (one, other))
        mine, theirs = (set(first_to_go(row, sizes, share)) for row in (values, others))
        return Agreement(metric, *one, *other, rank_correlation(values, others), len(mine & theirs) / len(mine | theirs))

    rows = [between((text, count), (text, max(by_count))) for text, by_count in found.items() for count in by_count
            if count < max(by_count)]
    return rows + [between((text, max(by_count)), (first, max(found[first]))) for text, by_count in found.items() if text != first]


def first_to_go(values: Sequence[float], sizes: Sequence[int], share: float) -> tuple[int, ...]:
    """The places of the least values, as many as together have at least the share of all sizes."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    gone, wanted = 0, share * sum(sizes)
    for count, place in enumerate(order):
        if gone >= wanted:
            return tuple(order[:count])
        gone += sizes[place]
    return tuple(order)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, from -1 to 1; equal values share the mean of their ranks."""
    return correlation(*(_ranks(torch.as_tensor(values, dtype=torch.float64)).tolist() for values in (one, other)))


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's, from -1 to 1; no number where one of them is constant."""
    first, second = (torch.as_tensor(values, dtype=torch.float64) for values in (one, other))
    first, second = first - first.mean(), second - second.mean()
    size = float(first.norm() * second.norm())
    return float(first @ second) / size if size else math.nan


def _ranks(values: torch.Tensor) -> torch.Tensor:
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts + 1) / 2).double()[places]
