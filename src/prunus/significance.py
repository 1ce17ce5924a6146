"""Whether a difference is more than chance: tests of two models on the same examples, of several seeds, and of many questions at once."""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .uncertainty import by_cluster

__all__ = ["LEVEL", "Seeds", "holm", "mcnemar", "of_seeds", "remark_on", "sign_flips"]

Name = TypeVar("Name", bound=Hashable)

LEVEL = 0.05  # of p-values after correction, below which a difference is said to be more than chance
_FLIPS = 10_000
_AT_ONCE = 2**22  # signs that are held together
_FEW = 6  # seeds, with which signs alone can say something at 5 %: 2 / 2**6 < 0.05


def mcnemar(one: Sequence[float], other: Sequence[float]) -> float:
    """The p-value of equal accuracy, from right (1) and wrong (0) on the same examples: McNemar's test, exact and two-sided.

    McNemar 1947 with the binomial distribution of the examples that one is right about and the other is not, at any number of them.
    """
    only = [sum(mine > theirs for mine, theirs in zip(*pair, strict=True)) for pair in ((one, other), (other, one))]
    count, least = sum(only), min(only)
    ways = term = 1
    for place in range(least):
        term = term * (count - place) // (place + 1)
        ways += term
    return min(1.0, 2 * ways / 2**count)


def sign_flips(one: Sequence[float], other: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """The p-value of equal means, from values of the same examples: differences change their signs at random; two-sided.

    Fisher's randomisation test: exact where there are at most 13 examples, else from 10,000 draws with a fixed seed, of which the data
    themselves count as one (Phipson & Smyth 2010), so that it is never below 0.0001. With `clusters`, one name per example,
    the differences of a cluster change their signs together.
    """
    differences = torch.tensor(other, dtype=torch.float64) - torch.tensor(one, dtype=torch.float64)
    return _flipped(by_cluster(differences, clusters)[0])


def _flipped(differences: Float[Tensor, "count"]) -> float:
    found, count = abs(float(differences.sum())), len(differences)
    least = found - 1e-12 * float(differences.abs().sum())  # sums that are equal but for rounding are equal
    if count <= math.log2(_FLIPS):
        every = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
        return float(((every * 2 - 1).double() @ differences).abs().ge(least).double().mean())
    generator = torch.Generator().manual_seed(0)
    together, beyond = max(1, _AT_ONCE // count), 0
    for start in range(0, _FLIPS, together):
        drawn = torch.randint(2, (min(together, _FLIPS - start), count), generator=generator, dtype=torch.int8)
        beyond += int(((drawn * 2 - 1).double() @ differences).abs().ge(least).sum())
    return (beyond + 1) / (_FLIPS + 1)


def holm(values: Mapping[Name, float]) -> dict[Name, float]:
    """P-values of several questions, each as large as it must be for all of them to be asked at once: Holm 1979."""
    adjusted: dict[Name, float] = {}
    largest = 0.0
    for place, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, value * (len(values) - place)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in values}


@dataclass(frozen=True)
class Seeds:
    """Two methods over several seeds."""

    count: int
    means: tuple[float, float]  # of each method
    deviations: tuple[float, float]  # over seeds, of samples; no number with one seed
    difference: float  # the second method's mean - the first's
    deviation: float  # of the difference within a seed
    p: float  # of no difference: Student's paired t-test; no number with one seed


def remark_on(seeds: int) -> str:
    """What a reader must know of so few seeds; empty where there are enough."""
    if seeds >= _FEW:
        return ""
    if seeds == 1:
        return "One seed: how much another one would change is not known."
    return (f"{seeds} seeds: the test takes the differences to be normally distributed; without that, no test of so few can go "
            f"below p = {2 / 2**seeds:.3g}.")


def of_seeds(one: Sequence[float], other: Sequence[float]) -> Seeds:
    """A value per seed of two methods, the same seeds in the same order, compared seed by seed."""
    differences = [theirs - mine for mine, theirs in zip(one, other, strict=True)]
    count = len(differences)
    mean = statistics.fmean(differences)
    deviation, *each = ([statistics.stdev(values) if count > 1 else math.nan for values in (differences, one, other)])
    p = math.nan if count == 1 else _student_test(mean, deviation, count)
    return Seeds(count, (statistics.fmean(one), statistics.fmean(other)), (each[0], each[1]), mean, deviation, p)


def _student_test(mean: float, deviation: float, count: int) -> float:
    if deviation == 0:
        return 0.0 if mean else 1.0
    return 1 - _student_inside(abs(mean) / deviation * math.sqrt(count), count - 1)


def _student_inside(t: float, freedom: int) -> float:
    """How much of Student's distribution lies within ± t: Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
