"""Alternate between a dense and a sparse copy (ADMM), then conjugate gradients on the support (Meng et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from ..admm import Refits, Schedule, split
from ..errors import RecipeError
from ..granularity import NM, Columns, Tile, Unstructured
from ..problem import LayerProblem, LayerSolution
from ..stats import Needs

__all__ = ["ALPS"]


@dataclass(frozen=True)
class ALPS:
    """Meng et al. 2024 (NeurIPS), sections 3 and 4, rearranged; measured in benchmarks/how_fast_is_alps.py.

    The iterations are those of `prunus.admm.alternate`, one matrix product each.
    Departs from the paper: damping follows the median of diag(H), since a few massive inputs can lift the mean above
    all others; the scale blends diag(H) with 1 / diag(H^-1); ADMM ends when the support has almost
    settled, as the refit repairs the rest; the refit's residual is masked, so it can stop. k is the number KEPT.
    """

    damping: float = 0.01  # added to the Gram's diagonal, as a fraction of its median
    rho: float = 0.15  # first penalty; the Gram has a diagonal of mean one
    check_every: int = 3  # iterations between two looks at the support
    settled: float = 0.02  # change of the support between two looks, as a fraction of k, that ends ADMM
    iterations: int = 60  # at most
    blend: float = 0.6  # 0: inputs scaled by diag(H), as in the paper; 1: by the inverse of diag(H^-1)
    refit_steps: int = 6  # conjugate gradient steps, at most
    refit_tolerance: float = 1e-3  # of the residual, relative to the first

    needs: ClassVar[Needs] = "gram"
    scope: ClassVar[str] = "matrix"
    supports: ClassVar[tuple[type, ...]] = (Unstructured, NM, Tile, Columns)

    def __post_init__(self) -> None:
        least = min(self.settled, self.iterations, self.refit_steps, self.refit_tolerance)
        if not (self.rho > 0 and self.damping >= 0 and 0 <= self.blend <= 1) or self.check_every < 1 or least < 0:
            raise RecipeError(f"rho = {self.rho:g}, damping = {self.damping:g}, blend = {self.blend:g}, check_every = {self.check_every}, "
                              f"the least of the others = {least:g}: expected rho above 0, no negative damping, blend in [0, 1], a check "
                              "at least every iteration, and nothing below 0.")

    def solve(self, problem: LayerProblem) -> LayerSolution:
        problem.check()
        if problem.sparsity == 0:
            return problem.untouched()
        schedule = Schedule(self.rho, self.check_every, self.settled, self.iterations, _growth)
        return split(problem, self.damping, self.blend, schedule, Refits(self.refit_steps, self.refit_tolerance)).solution


def _growth(change: float) -> float:
    """The factor on rho (ALPS, section 3.2: by the change of the support; its first step is 1.3 in the paper)."""
    if change >= 0.1:
        return 1.4
    return 1.2 if change >= 0.005 else 1.1
