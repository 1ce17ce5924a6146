"""How sure a measured number is: bootstrap intervals over windows or examples."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Interval", "paired_ratio_interval", "perplexity_interval"]

Interval = tuple[float, float]


def perplexity_interval(losses: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile bootstrap of exp(mean loss) over windows."""
    return _bootstrap(torch.tensor(losses, dtype=torch.float64), level)


def paired_ratio_interval(before: Sequence[float], after: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile bootstrap of the ratio of two perplexities on the same windows, each window drawn with its partner."""
    return _bootstrap(torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64), level)


def _bootstrap(values: Tensor, level: float, resamples: int = 2000) -> Interval:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = values[drawn].mean(1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return _exp(low), _exp(high)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
