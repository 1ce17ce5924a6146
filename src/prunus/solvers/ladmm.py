"""Alternate between a dense and a sparse copy (ADMM) at one penalty, while the sparsity grows (Boža 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..admm import smoother
from ..errors import NotDefinite, RecipeError
from ..granularity import NM, Columns, Granularity, Tile, Unstructured, keep_mask, removed_count
from ..least_squares import fit_support
from ..problem import LayerProblem, LayerSolution
from ..stats import InputStats, Needs

__all__ = ["LADMM"]


@dataclass(frozen=True)
class LADMM:
    """Boža 2024 (TMLR), Algorithm 1 with its gradual pruning; every scope and shape follows the cubic schedule.

    Saliency is |w| ||x||, of the iterate and the dual together; one inverse serves all iterations. Departs from the paper by
    conjugate gradients on the last support (`refit_steps = 0` leaves them out; where all rows share a support it is solved exactly
    all the same), which the authors leave to the iterations.
    """

    damping: float = 0.1  # added to the Gram's diagonal, which is one
    rho: float = 1.0  # the penalty
    iterations: int = 20  # of ADMM
    gradual: int = 15  # the first of them, over which the sparsity grows; the support stays from then on
    refit_steps: int = 6  # conjugate gradient steps, at most
    refit_tolerance: float = 1e-3  # of the residual, relative to the first

    needs: ClassVar[Needs] = "gram"
    scope: ClassVar[str] = "matrix"
    supports: ClassVar[tuple[type, ...]] = (Unstructured, NM, Tile, Columns)

    def __post_init__(self) -> None:
        least = min(self.refit_steps, self.refit_tolerance)
        if not (self.rho > 0 and self.damping >= 0) or not 1 <= self.gradual <= self.iterations or least < 0:
            raise RecipeError(f"rho = {self.rho:g}, damping = {self.damping:g}, gradual = {self.gradual}, iterations = {self.iterations}, "
                              f"the least of the others = {least:g}: expected rho above 0, no negative damping, gradual from 1 to "
                              "iterations, and nothing below 0.")

    def solve(self, problem: LayerProblem) -> LayerSolution:
        problem.check()
        if problem.sparsity == 0:
            return problem.untouched()
        gram, smoothing, scale = problem.stats.shared(("ladmm", self.damping, self.rho), lambda: self._prepare(problem.stats))
        dense = (problem.weight * scale).T.contiguous()
        moved, mask = dense, torch.ones_like(dense, dtype=torch.bool)
        for step in range(1, self.iterations + 1):
            if step <= self.gradual:
                share = problem.sparsity * (1 - (1 - step / self.gradual) ** 3)
                mask = _mask(moved.T.square(), share, problem.granularity, last=step == self.gradual).T
            sparse = moved * mask
            centre = dense + moved - sparse  # the dense weight and the dual: see prunus.admm.alternate
            moved = torch.addmm(centre, smoothing, sparse - centre)
        kept = mask.T.contiguous()
        try:
            weight = fit_support(dense.T, kept, gram, moved.T * kept, self.refit_steps, self.refit_tolerance)
        except torch.linalg.LinAlgError:
            raise NotDefinite(problem.name, self.damping) from None
        return LayerSolution(weight / scale * kept, kept)

    def _prepare(self, stats: InputStats) -> tuple[Float[Tensor, "in in"], Float[Tensor, "in in"], Float[Tensor, "in"]]:
        """The scaled and damped Gram H, rho (H + rho I)^-1, and the scale."""
        gram = stats.damped(0.0)
        scale = gram.diagonal().sqrt()
        gram.div_(scale).div_(scale[:, None]).diagonal().add_(self.damping)
        return gram, smoother(gram, self.rho, stats.name), scale


def _mask(saliency: Float[Tensor, "out in"], share: float, granularity: Granularity, last: bool) -> Bool[Tensor, "out in"]:
    """What is kept at a share of sparsity. On the way to n:m, the least salient go of those that its pattern would remove."""
    if last or not isinstance(granularity, NM):
        return keep_mask(saliency, share, granularity)
    pattern = keep_mask(saliency, share, granularity)
    gone = removed_count(share, saliency.numel())
    return keep_mask(saliency.masked_fill(pattern, torch.inf), gone / saliency.numel(), Unstructured("matrix"))
