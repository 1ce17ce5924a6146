"""Every site gives the same share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..budget import Allocation, Budget
from ..granularity import Granularity
from ..sites import Site
from ..stats import InputStats, LossStats, Needs

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform:
    """The same sparsity everywhere; needs no data. Counts round up, so the budget is met without a search."""

    needs: ClassVar[Needs] = "nothing"
    loss_needs: ClassVar[None] = None

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> None:
        return None

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        return {site.name: budget.sparsity for site in sites}
