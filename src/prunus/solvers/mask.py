"""Zero the least salient weights and leave the others as they are."""

from dataclasses import dataclass
from typing import ClassVar

from ..criteria import Criterion, loss_needs
from ..criteria.wanda import Wanda
from ..granularity import NM, Columns, Tile, Unstructured, keep_mask
from ..problem import LayerProblem, LayerSolution
from ..stats import LossNeeds, Needs
from . import saliency_of

__all__ = ["Mask"]


@dataclass(frozen=True)
class Mask:
    """Prune by a criterion alone: with magnitude, the oldest method; with Wanda, Sun et al. 2024."""

    criterion: Criterion = Wanda()  # what saliency is

    supports: ClassVar[tuple[type, ...]] = (Unstructured, NM, Tile, Columns)
    ranks: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        return self.criterion.needs

    @property
    def scope(self) -> str:
        return self.criterion.scope

    @property
    def loss_needs(self) -> LossNeeds | None:
        return loss_needs(self.criterion)

    def solve(self, problem: LayerProblem) -> LayerSolution:
        problem.check()
        values = saliency_of(problem, self.criterion)
        mask = keep_mask(values, problem.sparsity, problem.granularity)
        weight = problem.weight * mask
        return LayerSolution(weight, mask, problem.shift(weight) if getattr(self.criterion, "bias", False) else None)
