"""Slow splitting (ADMM), then exchanges of kept for pruned weights at their exact price, then a refit."""

from dataclasses import dataclass
from typing import ClassVar

from ..admm import Refits, Schedule, split
from ..errors import RecipeError
from ..exchanges import exchange
from ..granularity import NM, Unstructured
from ..problem import LayerProblem, LayerSolution
from ..stats import Needs

__all__ = ["Swaps"]


@dataclass(frozen=True)
class Swaps:
    """Supports better than those of ALPS (Meng et al. 2024), found in two steps, and never worse than what the first one gives.

    The first is ALPS with a penalty that grows more slowly and ends later. In the second every row exchanges weights, like in
    SparseSwaps (Zimmer et al. 2025), but at the price after all others are refitted, which is exact within a window of places
    (prunus.exchanges): with matrix scope rows also trade, and where no exchange helps n:m with 100 patterns or fewer (2:4, 4:8), all
    patterns are tried of the two groups of a row that are nearest to one.
    """

    damping: float = 0.01  # added to the Gram's diagonal, as a fraction of its median
    rho: float = 0.1  # first penalty; the Gram has a diagonal of mean one
    growth: float = 1.15  # the factor on it at every look at the support
    check_every: int = 3  # iterations between two looks
    settled: float = 0.005  # change of the support between two looks, as a fraction of what is kept, that ends ADMM
    iterations: int = 60  # at most
    blend: float = 0.6  # 0: inputs scaled by diag(H); 1: by the inverse of diag(H^-1)
    window: int = 32  # places of a row that may be exchanged; 0: none
    refit_steps: int = 10  # conjugate gradient steps, at most
    refit_tolerance: float = 1e-3  # of the residual, relative to the first

    needs: ClassVar[Needs] = "gram"
    scope: ClassVar[str] = "matrix"
    supports: ClassVar[tuple[type, ...]] = (Unstructured, NM)

    def __post_init__(self) -> None:
        least = min(self.settled, self.iterations, self.refit_steps, self.refit_tolerance)
        if not (self.rho > 0 and self.growth > 1 and self.damping >= 0 and 0 <= self.blend <= 1):
            raise RecipeError(f"rho = {self.rho:g}, growth = {self.growth:g}, damping = {self.damping:g}, blend = {self.blend:g}: expected "
                              "rho above 0, growth above 1, no negative damping, and blend in [0, 1].")
        if self.check_every < 1 or self.window < 0 or self.window == 1 or least < 0:
            raise RecipeError(f"check_every = {self.check_every}, window = {self.window}, the least of the others = {least:g}: expected a "
                              "check at least every iteration, a window of 0 or of 2 places and more, and nothing below 0.")

    def solve(self, problem: LayerProblem) -> LayerSolution:
        problem.check()
        if problem.sparsity == 0:
            return problem.untouched()
        schedule = Schedule(self.rho, self.check_every, self.settled, self.iterations, lambda _: self.growth)
        refits = Refits(self.refit_steps, self.refit_tolerance)
        first = split(problem, self.damping, self.blend, schedule, refits)
        if self.window == 0:
            return first.solution
        better = exchange(first.dense.T.contiguous(), first.weight, first.mask, first.curvature.gram, problem.granularity, self.window,
                          problem.stats.name)
        second = first.on(better, first.weight, refits)
        return min(first.solution, second.solution, key=lambda solution: problem.error(solution.weight) or 0.0)
