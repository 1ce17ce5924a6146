"""A solver that lives outside Prunus."""

from dataclasses import dataclass
from typing import ClassVar

from prunus.granularity import Unstructured, keep_mask
from prunus.problem import LayerProblem, LayerSolution
from prunus.stats import Needs


@dataclass(frozen=True)
class Halve:
    """Zero the smallest weights and scale the others."""

    share: float = 0.5

    needs: ClassVar[Needs] = "nothing"
    scope: ClassVar[str] = "row"
    supports: ClassVar[tuple[type, ...]] = (Unstructured,)

    def solve(self, problem: LayerProblem) -> LayerSolution:
        mask = keep_mask(problem.weight.abs(), problem.sparsity, problem.granularity)
        return LayerSolution(problem.weight * mask * self.share, mask)
