"""Take more from the blocks whose median saliency is large (Chen et al. 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..budget import Allocation, Budget
from ..criteria.wanda import Wanda
from ..errors import RecipeError
from ..granularity import Granularity
from ..sites import Site
from ..stats import InputStats, LossStats, Needs
from . import Per, lean

__all__ = ["DLP"]


@dataclass(frozen=True)
class DLP:
    """Dynamic layerwise pruning, Chen et al. 2025 (ICML): a large median Wanda saliency means redundancy.

    Departs from the paper: the median is that of each matrix, and a block has the mean of them, weighted by size;
    the budget counts weights, not blocks.
    """

    spread: float = 0.15  # largest departure from the middle; alpha in the paper
    per: Per = "block"  # what gets one share: matrix, sublayer or block

    needs: ClassVar[Needs] = "power"
    loss_needs: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not 0 <= self.spread < 0.5:
            raise RecipeError(f"spread = {self.spread:g}: expected a spread in [0, 0.5).")

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> float:
        return float(Wanda().saliency(weight, stats).median())

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        importance = {name: -value for name, value in measured.items()}
        return lean(importance, self.spread, self.per, sites, budget, granularity)
