"""Choose a support by saliency, then re-fit every row on it by least squares."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..criteria import Criterion, loss_needs
from ..criteria.wanda import Wanda
from ..errors import NotDefinite, RecipeError
from ..granularity import NM, Columns, Tile, Unstructured, keep_mask
from ..least_squares import fit_support
from ..problem import LayerProblem, LayerSolution
from ..stats import LossNeeds, Needs
from ..traits import most_precise
from . import saliency_of

__all__ = ["Refit"]


@dataclass(frozen=True)
class Refit:
    """The support of a criterion with the best weights on it; computed in float64 where the device has it."""

    criterion: Criterion = Wanda()  # what chooses the support
    damping: float = 0.01  # added to the Gram's diagonal, as a fraction of its mean
    tolerance: float = 1e-7  # of the residual, relative to the first

    needs: ClassVar[Needs] = "gram"
    supports: ClassVar[tuple[type, ...]] = (Unstructured, NM, Tile, Columns)
    ranks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.damping >= 0 and self.tolerance >= 0):
            raise RecipeError(f"damping = {self.damping:g}, tolerance = {self.tolerance:g}: expected no negative damping or tolerance.")

    @property
    def scope(self) -> str:
        return self.criterion.scope

    @property
    def loss_needs(self) -> LossNeeds | None:
        return loss_needs(self.criterion)

    def solve(self, problem: LayerProblem) -> LayerSolution:
        problem.check()
        if problem.sparsity == 0:
            return problem.untouched()
        values = saliency_of(problem, self.criterion)
        mask = keep_mask(values, problem.sparsity, problem.granularity)
        precision = most_precise(problem.weight.device)
        gram = problem.stats.damped(self.damping).to(precision)
        try:
            weight = fit_support(problem.weight.to(precision), mask, gram, tolerance=self.tolerance)
        except torch.linalg.LinAlgError:
            raise NotDefinite(problem.name, self.damping) from None
        return LayerSolution(weight.to(problem.weight) * mask, mask)
