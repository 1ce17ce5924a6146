"""Spare the matrices in whose weights the loss curves most (Shao et al. 2024)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..budget import Allocation, Budget
from ..errors import RecipeError
from ..granularity import Granularity
from ..sites import Site
from ..stats import InputStats, LossNeeds, LossStats, Needs
from . import Per, lean

__all__ = ["Sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """Shao et al. 2024 (ICASSP), Algorithm 1: shares fall evenly with the rank of the Hessian's trace per weight.

    The trace is Hutchinson's estimate. Departs from the paper: the budget counts weights, where the paper takes the mean over
    matrices of any size; matrices of equal sensitivity share a rank; the shares lie evenly on both sides of the budget.
    """

    spread: float = 0.1  # largest departure from the middle; alpha in the paper
    per: Per = "matrix"  # what gets one share: matrix, sublayer or block
    sequences: int = 8  # of the calibration text, each with its own random signs

    needs: ClassVar[Needs] = "nothing"

    def __post_init__(self) -> None:
        if not 0 <= self.spread < 0.5 or self.sequences < 1:
            raise RecipeError(f"spread = {self.spread:g}, sequences = {self.sequences}: expected a spread in [0, 0.5) and at least "
                              "one sequence.")

    @property
    def loss_needs(self) -> LossNeeds:
        """Traces."""
        return LossNeeds(curvature=True, sequences=self.sequences)

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> float:
        assert loss is not None
        assert loss.trace is not None
        return loss.trace / weight.numel()

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        values = list(measured.values())
        ranks = {name: float(sum(other < value for other in values) + sum(other <= value for other in values))
                 for name, value in measured.items()}
        return lean(ranks, self.spread, self.per, sites, budget, granularity)
