"""Take from every matrix until the next weight would cost the loss the same everywhere."""

import math
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
from ..stats import InputStats, LossNeeds, LossStats, Needs
from . import Per, fit, pooled, probed

__all__ = ["Fisher"]


@dataclass(frozen=True)
class Fisher:
    """The share at which all matrices have the same marginal cost, in a second-order model of the loss.

    With delta the loss's gradient at a matrix's output y, losing the part dy costs about E (delta . dy)^2 / 2 (the empirical
    Fisher), which is E ||delta||^2 ||dy||^2 / (2 out) when the two have no direction in common. ||dy||^2 / ||y||^2 is the
    relative error that a solver leaves; its logarithm is taken for linear in the sparsity, through two probes. What the model
    says far from its probes is not believed: `spread` bounds it.
    """

    solver: Solver = SparseGPT()  # the probe
    probes: tuple[float, ...] = (0.5, 0.75)  # two sparsities at which every site is tried, ascending
    spread: float = 0.15  # largest departure from the budget's sparsity
    per: Per = "matrix"  # what gets one share: matrix, sublayer or block
    sequences: int = 16  # of the calibration text, for the gradient

    needs: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        if len(self.probes) != 2 or not 0 < self.probes[0] < self.probes[1] < 1 or not 0 <= self.spread < 0.5 or self.sequences < 1:
            raise RecipeError(f"probes = {list(self.probes)}, spread = {self.spread:g}, sequences = {self.sequences}: expected two "
                              "ascending probes in (0, 1), a spread in [0, 0.5) and at least one sequence.")
        if loss_needs(self.solver):
            raise RecipeError("solver: expected a probe that does not look at the loss itself; Fisher does. Use another criterion.")

    @property
    def loss_needs(self) -> LossNeeds:
        """Gradients."""
        return LossNeeds(sequences=self.sequences)

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> tuple[float, float]:
        """The logarithm of the cost at sparsity 0, and how fast it grows with the sparsity."""
        assert loss is not None
        low, high = (probed(self.solver, probe, site, weight, stats) for probe in self.probes)
        growth = max((high - low) / (self.probes[1] - self.probes[0]), 1e-3)
        weighting = math.log(max(loss.output / weight.shape[0], 1e-30))
        return weighting + low - growth * self.probes[0], growth

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        asked = budget.sparsity

        def share(site: Site, price: float) -> float:
            """Where d cost / d weights = exp(price)."""
            cost, growth = measured[site.name]
            return min(max((price + math.log(site.size / growth) - cost) / growth, asked - self.spread), asked + self.spread)

        ends = [cost + growth * end - math.log(site.size / growth) for site in sites for cost, growth in [measured[site.name]]
                for end in (asked - self.spread, asked + self.spread)]  # prices between which shares move
        low, width = min(ends), max(ends) - min(ends)

        def preference(site: Site, level: float) -> float:
            return share(site, low + width * (level + 1) / 3)  # `fit` tries levels from -1 to 2

        return fit(pooled(preference, self.per, sites), sites, budget, granularity)
