"""Inputs of matrices in the order in which n:m keeps most, before they are pruned; what the dense model computes stays."""

from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

import torch
from torch import nn

from .calibration.stream import View
from .granularity import NM, Granularity
from .permutation import best_order, kept_of
from .sites import ChannelSite, LinearSite
from .surgery.write import read_weight, reorder
from .traits import total

__all__ = ["put_in_order"]


def put_in_order(model: nn.Module, moving: Mapping[LinearSite, ChannelSite], granularity: Granularity,
                 views: Callable[[], Iterator[list[View]]], measured: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]],
                 told: Callable[[int, int], None]) -> str:
    """Reorder the inputs of the matrices in `moving`, and say in a sentence what that has brought.

    `views` looks at what they read in the model as it is; `measured` gives what a function does, or has done before; `told` is how many
    of them are in order, and of how many.
    A weight's importance is that of Wanda (Sun et al. 2024), |w|^2 E[x^2].
    """
    assert isinstance(granularity, NM)

    def measure() -> dict[str, Any]:
        found = {}
        for view in (view for group in views() for view in group):
            found[view.site.name] = _order(view, moving[view.site], granularity)
            told(len(found), len(moving))
        return found

    orders = measured(measure)
    for matrix, site in moving.items():
        reorder(model, site, torch.tensor(orders[matrix.name]["order"]))
    before, after = (fmean(orders[matrix.name][key] for matrix in moving) for key in ("before", "after"))
    names = ", ".join(dict.fromkeys(matrix.name.removeprefix(f"{matrix.branch.rpartition('.')[0]}.") for matrix in moving))
    return (f"Inputs of {len(moving)} matrices ({names}) took another order before {granularity.n}:{granularity.m} was chosen: it can keep "
            f"{after:.2%} of the importance of their weights on average, and not {before:.2%}. Other matrices kept theirs.")


def _order(view: View, site: ChannelSite, granularity: NM) -> dict[str, Any]:
    """The order of one matrix's inputs, and the share of its importance that is kept without it and with it."""
    parts, channels, reads = site.parts
    weight = read_weight(view.module).to(view.stats.power)
    saliency = (weight.square() * view.stats.power).view(-1, parts, reads, channels).permute(1, 0, 2, 3).flatten(1, 2)
    n, m = granularity.n, granularity.m
    order = best_order(saliency, n, m)
    moved = saliency.gather(2, order[:, None].expand_as(saliency))
    whole = total(saliency) or 1.0  # where all weights are 0
    return {"order": order.tolist(), "before": kept_of(saliency, n, m) / whole, "after": kept_of(moved, n, m) / whole}
