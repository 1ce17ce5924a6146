"""Spare the matrices that a solver cannot reconstruct well at a probe sparsity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..budget import Allocation, Budget
from ..criteria import loss_needs
from ..errors import RecipeError
from ..granularity import Granularity
from ..sites import Site
from ..solvers import Solver
from ..solvers.sparsegpt import SparseGPT
from ..stats import InputStats, LossNeeds, Needs
from . import Per, lean, probed

__all__ = ["Reconstruction"]


@dataclass(frozen=True)
class Reconstruction:
    """Importance is the logarithm of the relative output error that is left at one sparsity for all.

    After LSA (layer-wise importance by minimal linear reconstruction error), with any solver of Prunus as the probe.
    """

    solver: Solver = SparseGPT()  # the probe
    probe: float = 0.5  # sparsity at which every site is tried
    spread: float = 0.1  # largest departure from the middle
    per: Per = "matrix"  # what gets one share: matrix, sublayer or block

    needs: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        if not 0 < self.probe < 1 or not 0 <= self.spread < 0.5:
            raise RecipeError(f"probe = {self.probe:g}, spread = {self.spread:g}: expected a probe in (0, 1) and a spread in "
                              "[0, 0.5).")

    @property
    def loss_needs(self) -> LossNeeds | None:
        """What the probe wants to know."""
        return loss_needs(self.solver)

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: Any) -> float:
        return probed(self.solver, self.probe, site, weight, stats, loss)

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        return lean(measured, self.spread, self.per, sites, budget, granularity)
