"""The columns that least squares can make up for least: removed one by one, then exchanged (column-subset selection)."""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import RecipeError
from ..granularity import Columns
from ..pivots import Pivoted
from ..problem import LayerProblem, LayerSolution
from ..stats import Needs

__all__ = ["Subset"]


@dataclass(frozen=True)
class Subset:
    """Greedy backward elimination with the exact loss after refitting what stays, then exchanges of a column that has gone for
    one that stays, as long as they help (OSSCAR, Meng et al. 2024; MoDeGPT, Lin et al. 2025, chooses columns for the same loss).

    With G the damped Gram, the columns S that stay have the weights W G_S (G_SS)^-1. Both moves are principal pivots of
    [G; W G], which hold the loss of every removal and the gain of every return in the same place.
    """

    damping: float = 0.01  # added to the Gram's diagonal, as a fraction of its mean
    swaps: int = 100  # exchanges at most

    needs: ClassVar[Needs] = "gram"
    scope: ClassVar[str] = "matrix"
    supports: ClassVar[tuple[type, ...]] = (Columns,)

    def __post_init__(self) -> None:
        if not self.damping >= 0 or self.swaps < 0:
            raise RecipeError(f"damping = {self.damping:g}, swaps = {self.swaps}: expected no negative number.")

    def solve(self, problem: LayerProblem) -> LayerSolution:
        problem.check()
        assert isinstance(problem.granularity, Columns)
        if problem.sparsity == 0:
            return problem.untouched()
        state = Pivoted.of(problem.weight, problem.stats.inverse_cholesky(self.damping), problem.granularity.width)
        for _ in range(problem.granularity.removed(problem.sparsity, problem.weight.shape[1])):
            state.move(state.cheapest())
        for _ in range(self.swaps):
            if not state.exchange():
                break
        return LayerSolution(*state.solution(problem.weight))
