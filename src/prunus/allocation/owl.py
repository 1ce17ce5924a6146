"""Spare the blocks whose saliencies have more outliers (Yin et al. 2024)."""

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

__all__ = ["OWL"]


@dataclass(frozen=True)
class OWL:
    """Yin et al. 2024 (ICML), section 3: the share of weights whose Wanda saliency is far above the mean.

    Departs from the paper: outliers are counted against the mean of their own matrix, where the paper takes the mean of
    the block, so that all blocks need not be in memory together; and the budget counts weights, not blocks.
    """

    threshold: float = 5.0  # an outlier is this many times its matrix's mean saliency; M in the paper
    spread: float = 0.08  # largest departure from the middle; lambda in the paper
    per: Per = "block"  # what gets one share: matrix, sublayer or block

    needs: ClassVar[Needs] = "power"
    loss_needs: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.threshold <= 0 or not 0 <= self.spread < 0.5:
            raise RecipeError(f"threshold = {self.threshold:g}, spread = {self.spread:g}: expected a threshold above 0 and "
                              "a spread in [0, 0.5).")

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> float:
        saliency = Wanda().saliency(weight, stats)
        return float((saliency > self.threshold * saliency.mean()).float().mean())

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        return lean(measured, self.spread, self.per, sites, budget, granularity)
