"""How sure a measured number is: bootstrap intervals over windows or examples."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Interval", "paired_ratio_interval", "perplexity_interval", "statistic_interval"]

Interval = tuple[float, float]


def perplexity_interval(losses: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile bootstrap of exp(mean loss) over windows."""
    return _bootstrap(torch.tensor(losses, dtype=torch.float64), level)


def paired_ratio_interval(before: Sequence[float], after: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile bootstrap of the ratio of two perplexities on the same windows, each window drawn with its partner."""
    return _bootstrap(torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64), level)


def statistic_interval(statistic: Callable[[Tensor], float], count: int, level: float = 0.95) -> Interval:
    """Percentile bootstrap of a number that is computed from `count` examples, when it is given the indices of as many."""
    return _quantiles(torch.tensor([statistic(drawn) for drawn in _drawn(count)], dtype=torch.float64), level)


def _bootstrap(values: Tensor, level: float) -> Interval:
    low, high = _quantiles(values[_drawn(len(values))].mean(1), level)
    return _exp(low), _exp(high)


def _drawn(count: int, resamples: int = 2000) -> Tensor:
    return torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))


def _quantiles(found: Tensor, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = torch.quantile(found, torch.tensor([tail, 1 - tail], dtype=found.dtype)).tolist()
    return low, high


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
