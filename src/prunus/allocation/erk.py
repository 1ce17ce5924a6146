"""Take more from large matrices than from small ones (Erdos-Renyi; Evci et al. 2020)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..budget import Allocation, Budget
from ..errors import RecipeError
from ..granularity import Granularity
from ..sites import LinearSite, Site
from ..stats import InputStats, LossStats, Needs
from . import fit

__all__ = ["ERK"]


@dataclass(frozen=True)
class ERK:
    """Evci et al. 2020 (ICML), section 3: the kept share is in proportion to (in + out) / (in * out). Needs no data."""

    needs: ClassVar[Needs] = "nothing"
    loss_needs: ClassVar[None] = None

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> None:
        return None

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        kept: dict[str, float] = {}
        for site in sites:
            if not isinstance(site, LinearSite):
                raise RecipeError(f"{site.name}: 'erk' is defined for matrices alone. Use --allocation uniform, or sites linear.")
            kept[site.name] = sum(site.shape) / site.size
        mean = sum(kept[site.name] * site.size for site in sites) / sum(site.size for site in sites)
        return fit(lambda site, level: 1 - (1 - level) * kept[site.name] / mean, sites, budget, granularity)
