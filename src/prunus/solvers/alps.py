"""Alternate between a dense and a sparse copy (ADMM), then conjugate gradients on the support (Meng et al. 2024)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import CalibrationError, RecipeError
from ..granularity import NM, Columns, Granularity, Tile, Unstructured, keep_mask, removed_count
from ..least_squares import fit_support
from ..problem import LayerProblem, LayerSolution
from ..stats import InputStats, Needs

__all__ = ["ALPS"]

_REMEMBERED = 8  # smoothers kept for the other sites that read the same inputs


@dataclass(frozen=True)
class ALPS:
    """Meng et al. 2024 (NeurIPS), sections 3 and 4, rearranged; measured in benchmarks/how_fast_is_alps.py.

    With the dense weight A, its Gram H, the iterate W, the sparse copy D and U = V / rho (V the dual), the updates
    of their eq. 4 are, counted from the dense weight,

        Z = W + U = S + P (D - S)    with S = A + U and P = rho (H + rho I)^-1
        D = project(Z),  U = Z - D

    that is one matrix product per iteration. rho changes only at checks, and a Cholesky inverse at each change,
    shared by the sites that read the same inputs, costs less than one eigendecomposition for all of them.
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
        if self.rho <= 0 or self.check_every < 1 or self.damping < 0:
            raise RecipeError(f"rho = {self.rho:g}, check_every = {self.check_every}, damping = {self.damping:g}: expected "
                              "rho above 0, a check at least every iteration, and no negative damping.")

    def solve(self, problem: LayerProblem) -> LayerSolution:
        problem.check()
        if problem.sparsity == 0:
            return problem.untouched()
        curvature = problem.stats.shared(("alps", self.damping, self.blend),
                                         lambda: _curvature(problem.stats, self.damping, self.blend))
        dense = (problem.weight * curvature.scale).T.contiguous()
        sparse = self._support(dense, curvature, problem)
        mask = _mask(sparse, problem.granularity, problem.sparsity)
        weight = fit_support(dense.T, mask, curvature.gram, sparse.T * mask, self.refit_steps, self.refit_tolerance)
        return LayerSolution(weight / curvature.scale * mask, mask)

    def _support(self, dense: Float[Tensor, "in out"], curvature: "_Curvature",
                 problem: LayerProblem) -> Float[Tensor, "in out"]:
        """ADMM until the support settles; gives back the sparse copy."""
        project = _projection(problem.granularity, problem.sparsity, dense.numel())
        sparse, centre, rho = project(dense), dense, self.rho
        moved, gap, shifted = (torch.empty_like(dense) for _ in range(3))
        support = sparse != 0
        for iteration in range(1, self.iterations + 1):
            torch.sub(sparse, centre, out=gap)
            torch.addmm(centre, curvature.smoother(rho), gap, out=moved)
            sparse = project(moved)
            growth = 1.0
            if iteration % self.check_every == 0:
                previous, support = support, sparse != 0
                change = int(torch.count_nonzero(support ^ previous)) / max(int(torch.count_nonzero(support)), 1)
                if change <= self.settled:
                    break
                growth = _growth(change)
            rho *= growth
            torch.sub(moved, sparse, out=gap)
            # V = rho U stays when rho grows, hence the division (eq. 4)
            centre = torch.add(dense, gap, alpha=1 / growth, out=shifted)
        return sparse


def _growth(change: float) -> float:
    """The factor on rho (ALPS, section 3.2: by the change of the support; its first step is 1.3 in the paper)."""
    if change >= 0.1:
        return 1.4
    return 1.2 if change >= 0.005 else 1.1


@dataclass
class _Curvature:
    """One damped Gram in scaled coordinates, shared by the sites that read the same inputs."""

    gram: Float[Tensor, "in in"]  # its diagonal has the mean 1
    scale: Float[Tensor, "in"]  # scaled weight = weight * scale
    remembered: int  # smoothers kept for the other sites
    smoothers: dict[float, Tensor] = field(default_factory=dict)

    def smoother(self, rho: float) -> Float[Tensor, "in in"]:
        """P = rho (H + rho I)^-1; I + H / rho has no eigenvalue below one, so float32 is enough."""
        if rho not in self.smoothers:
            while len(self.smoothers) >= self.remembered:
                self.smoothers.pop(next(iter(self.smoothers)))
            shifted = self.gram / rho
            shifted.diagonal().add_(1.0)
            torch.linalg.cholesky(shifted, out=shifted)
            self.smoothers[rho] = torch.cholesky_inverse(shifted)
        return self.smoothers[rho]


def _curvature(stats: InputStats, damping: float, blend: float) -> _Curvature:
    """Damp and scale (ALPS, section 3.3).

    The scale decides which weights the projection keeps. The diagonal of H prices a weight with all others fixed,
    that of the inverse with all others refitted; the truth lies between.
    """
    gram = stats.damped(damping, "median")  # ours: scaled in place from here on
    scale = gram.diagonal().sqrt()
    gram.div_(scale).div_(scale[:, None])
    shrink = _inverse_diagonal(gram, stats.name).clamp_min(1.0) ** (-blend / 2)
    gram.div_(shrink).div_(shrink[:, None])
    level = gram.diagonal().mean()
    return _Curvature(gram.div_(level), scale * shrink * level.sqrt(), _REMEMBERED if stats.readers > 1 else 1)


def _inverse_diagonal(matrix: Float[Tensor, "in in"], name: str) -> Float[Tensor, "in"]:
    """In float32, as only a scale depends on it; in float64 where that is not enough."""
    for dtype in (torch.float32, torch.float64):
        factor, failed = torch.linalg.cholesky_ex(matrix.to(dtype))
        if not int(failed):
            return torch.cholesky_inverse(factor).diagonal().to(matrix.dtype)
    raise CalibrationError(f"{name}: Gram matrix not positive definite after damping. "
                           "Raise `damping` or calibrate with more tokens.")


def _mask(iterate: Float[Tensor, "in out"], granularity: Granularity, sparsity: float) -> Bool[Tensor, "out in"]:
    """The largest magnitudes; of groups, the largest sums of squares, which is the exact projection."""
    return keep_mask(iterate.T.square(), sparsity, granularity)


def _projection(granularity: Granularity, sparsity: float, size: int) -> Callable[[Tensor], Tensor]:
    """Onto the sparse matrices; over a whole matrix, the threshold of the last call is where the next one looks."""
    if granularity != Unstructured("matrix"):
        return lambda moved: moved * _mask(moved, granularity, sparsity).T
    kept = size - removed_count(sparsity, size)
    guess, width = 0.0, 0.02  # where to look, and how far around it

    def project(moved: Tensor) -> Tensor:
        nonlocal guess, width
        magnitude = moved.abs()
        threshold = _kth_largest(magnitude.reshape(-1), kept, guess, width)
        drift = abs(threshold / guess - 1) if guess else 1.0
        guess, width = threshold, min(max(2 * drift, 5e-4), 0.02)
        return torch.where(magnitude >= threshold, moved, 0.0)  # ties are settled by the final mask

    return project


def _kth_largest(values: Float[Tensor, "n"], kept: int, guess: float, width: float) -> float:
    """The exact `kept`-th largest value, looked for near a guess first: a selection over all costs as much as a product."""
    if kept == 0:
        return math.inf
    while guess and width < 0.4:
        low, high = guess * (1 - width), guess * (1 + width)
        above = int(torch.count_nonzero(values > high))
        inside = values[(values > low) & (values <= high)]
        if above < kept <= above + inside.numel():
            return float(inside.kthvalue(inside.numel() - (kept - above) + 1).values)
        width *= 4
    return float(values.kthvalue(values.numel() - kept + 1).values)
