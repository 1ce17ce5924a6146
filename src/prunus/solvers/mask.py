"""Zero the least salient weights and leave the others as they are."""

from dataclasses import dataclass
from typing import ClassVar

from ..criteria import Criterion
from ..criteria.wanda import Wanda
from ..granularity import NM, Columns, Tile, Unstructured, keep_mask
from ..problem import LayerProblem, LayerSolution
from ..stats import Needs
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

    def solve(self, problem: LayerProblem) -> LayerSolution:
        problem.check()
        saliency = saliency_of(problem, self.criterion)
        mask = keep_mask(saliency, problem.sparsity, problem.granularity)
        return LayerSolution(problem.weight * mask, mask)
