"""Alternate between a dense and a sparse copy of a matrix (ADMM), and refit what is left: what solvers share."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import NotDefinite
from .granularity import Granularity, Unstructured, keep_mask, removed_count
from .least_squares import fit_support
from .problem import LayerProblem, LayerSolution
from .stats import InputStats
from .traits import most_precise

__all__ = ["Curvature", "Refits", "Schedule", "Split", "alternate", "smoother", "split"]

_REMEMBERED = 8  # smoothers kept for the other sites that read the same inputs


@dataclass(frozen=True)
class Schedule:
    """How the penalty rho grows, and when it ends."""

    rho: float  # first penalty; the Gram has a diagonal of mean one
    check_every: int  # iterations between two looks at the support
    settled: float  # change of the support between two looks, as a fraction of what is kept, that ends it
    iterations: int  # at most
    growth: Callable[[float], float]  # the factor on rho at a look, by the change of the support


@dataclass(frozen=True)
class Refits:
    """How exact the weights on a support are."""

    steps: int  # of conjugate gradients, at most
    tolerance: float  # of the residual, relative to the first


@dataclass(frozen=True)
class Split:
    """A problem in scaled coordinates, and a support with the weights on it."""

    dense: Float[Tensor, "in out"]
    curvature: "Curvature"
    mask: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"]  # 0 outside of the mask

    @property
    def solution(self) -> LayerSolution:
        """In the problem's own coordinates."""
        return LayerSolution(self.weight / self.curvature.scale * self.mask, self.mask)

    def on(self, mask: Bool[Tensor, "out in"], start: Float[Tensor, "out in"], refits: Refits) -> "Split":
        """The same on another support: weights fitted from a start."""
        return _fitted(self.dense, self.curvature, mask, start, refits)


def _fitted(dense: Float[Tensor, "in out"], curvature: "Curvature", mask: Bool[Tensor, "out in"], start: Float[Tensor, "out in"],
            refits: Refits) -> Split:
    weight = fit_support(dense.T, mask, curvature.gram, start * mask, refits.steps, refits.tolerance)
    return Split(dense, curvature, mask, weight)


def split(problem: LayerProblem, damping: float, blend: float, schedule: Schedule, refits: Refits) -> Split:
    """ADMM from the dense weight, and a refit on the support that it ends with; `damping` and `blend` are of `_curvature`.

    Raises CalibrationError when the Gram is not positive definite.
    """
    curvature = problem.stats.shared(("curvature", damping, blend), lambda: _curvature(problem.stats, damping, blend))
    dense = (problem.weight * curvature.scale).T.contiguous()
    sparse = alternate(dense, curvature, _projection(problem.granularity, problem.sparsity, dense.numel()), schedule)
    mask = _mask(sparse, problem.granularity, problem.sparsity)
    return _fitted(dense, curvature, mask, sparse.T, refits)


def alternate(dense: Float[Tensor, "in out"], curvature: "Curvature", project: Callable[[Tensor], Tensor],
              schedule: Schedule) -> Float[Tensor, "in out"]:
    """Until the support settles; gives back the sparse copy.

    With the dense weight A, its Gram H, the iterate W, the sparse copy D and U = V / rho (V the dual), the updates of
    Meng et al. 2024, eq. 4, are, counted from the dense weight,

        Z = W + U = S + P (D - S)    with S = A + U and P = rho (H + rho I)^-1
        D = project(Z),  U = Z - D

    that is one matrix product per iteration. rho changes only at looks, and a Cholesky inverse at each change,
    shared by the sites that read the same inputs, costs less than one eigendecomposition for all of them.
    """
    sparse, centre, rho = project(dense), dense, schedule.rho
    moved, gap, shifted = (torch.empty_like(dense) for _ in range(3))
    support = sparse != 0
    for iteration in range(1, schedule.iterations + 1):
        torch.sub(sparse, centre, out=gap)
        torch.addmm(centre, curvature.smoother(rho), gap, out=moved)
        sparse = project(moved)
        growth = 1.0
        if iteration % schedule.check_every == 0:
            previous, support = support, sparse != 0
            change = int(torch.count_nonzero(support ^ previous)) / max(int(torch.count_nonzero(support)), 1)
            if change <= schedule.settled:
                break
            growth = schedule.growth(change)
        rho *= growth
        torch.sub(moved, sparse, out=gap)
        # V = rho U stays when rho grows, hence the division (eq. 4)
        centre = torch.add(dense, gap, alpha=1 / growth, out=shifted)
    return sparse


@dataclass
class Curvature:
    """One damped Gram in scaled coordinates, shared by the sites that read the same inputs."""

    gram: Float[Tensor, "in in"]  # its diagonal has the mean 1
    scale: Float[Tensor, "in"]  # scaled weight = weight * scale
    name: str  # of the site whose inputs these are
    remembered: int  # smoothers kept for the other sites
    smoothers: dict[float, Tensor] = field(default_factory=dict)

    def smoother(self, rho: float) -> Float[Tensor, "in in"]:
        """`smoother` of this Gram, remembered."""
        if rho not in self.smoothers:
            while len(self.smoothers) >= self.remembered:
                self.smoothers.pop(next(iter(self.smoothers)))
            self.smoothers[rho] = smoother(self.gram, rho, self.name)
        return self.smoothers[rho]


def smoother(gram: Float[Tensor, "in in"], rho: float, name: str) -> Float[Tensor, "in in"]:
    """P = rho (H + rho I)^-1; I + H / rho has no eigenvalue below one, so float32 is enough unless rho is tiny beside H. Raises
    CalibrationError, naming the site, where it is."""
    shifted = gram / rho
    shifted.diagonal().add_(1.0)
    try:
        torch.linalg.cholesky(shifted, out=shifted)
    except torch.linalg.LinAlgError:
        raise NotDefinite(name) from None
    return torch.cholesky_inverse(shifted)


def _curvature(stats: InputStats, damping: float, blend: float) -> Curvature:
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
    return Curvature(gram.div_(level), scale * shrink * level.sqrt(), stats.name, _REMEMBERED if stats.readers > 1 else 1)


def _inverse_diagonal(matrix: Float[Tensor, "in in"], name: str) -> Float[Tensor, "in"]:
    """In float32, as only a scale depends on it; in float64 where that is not enough."""
    for dtype in (torch.float32, most_precise(matrix.device)):
        factor, failed = torch.linalg.cholesky_ex(matrix.to(dtype))
        if not int(failed):
            return torch.cholesky_inverse(factor).diagonal().to(matrix.dtype)
    raise NotDefinite(name)


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
