"""Every site gives the same share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..budget import Allocation, Budget
from ..granularity import Granularity
from ..sites import LinearSite, Site
from ..stats import InputStats, LossStats, Needs
from . import fit

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform:
    """The same sparsity everywhere; needs no data. Counts of weights round up, so that the budget is met; where channels go, the
    sparsity is the least with which all sites together meet it.
    """

    needs: ClassVar[Needs] = "nothing"
    loss_needs: ClassVar[None] = None

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> None:
        return None

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        if all(isinstance(site, LinearSite) for site in sites):
            return {site.name: budget.sparsity for site in sites}
        return fit(lambda site, level: level, sites, budget, granularity)
