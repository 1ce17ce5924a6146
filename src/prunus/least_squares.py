"""The best values on a given support: one least-squares problem per output, all with the same Gram."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .traits import most_precise

__all__ = ["fit_support"]

_STEPS = 100  # of conjugate gradients, whose cost is worth an exact answer: to a tolerance of 1e-7 they take about as many


def fit_support(
    weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], gram: Float[Tensor, "in in"],
    start: Float[Tensor, "out in"] | None = None, steps: int = 500, tolerance: float = 1e-7,
) -> Float[Tensor, "out in"]:
    """argmin of tr((V - W) G (V - W)^T) over V that are 0 outside `mask`, for a positive definite G.

    Rows that share their supports are solved exactly, where the factors cost no more than conjugate gradients may. Otherwise by
    conjugate gradients preconditioned with the diagonal (Meng et al. 2024, Algorithm 2), each row with its own step lengths
    and a residual that is masked, so that it can vanish: a row stops when its residual is below `tolerance` times its first.
    """
    supports, which = _supports(mask)
    factors = float(supports.sum(1, dtype=torch.float32).pow(3).sum()) / 3
    if len(supports) == 1 or (steps and 2 * len(supports) <= len(mask) and factors <= 2 * _STEPS * mask.numel() * len(gram)):
        return _shared(weight, supports, which, gram)
    return _conjugate_gradients(weight, mask, gram, weight * mask if start is None else start, steps, tolerance)


def _supports(mask: Bool[Tensor, "out in"]) -> tuple[Bool[Tensor, "supports in"], Int[Tensor, "out"]]:
    """The different rows, and which of them each row is: told apart by sums of random numbers, which are quicker than sorting rows.

    All rows count as different where two that are have the same sums.
    """
    generator = torch.Generator().manual_seed(0)
    largest = max(2**24 // mask.shape[1], 2)  # so that float32 adds whole numbers up without rounding
    draw = torch.randint(largest, (mask.shape[1], 2), generator=generator).to(mask.device, torch.float32)
    found, which = (mask.to(draw) @ draw).unique(dim=0, return_inverse=True)
    supports = mask.new_zeros(len(found), mask.shape[1])
    supports[which] = mask
    if bool((supports[which] == mask).all()):
        return supports, which
    return mask, torch.arange(len(mask), device=mask.device)


def _shared(weight: Tensor, supports: Tensor, which: Tensor, gram: Tensor) -> Tensor:
    solution = torch.zeros_like(weight)
    for index, kept in enumerate(supports):
        places, rows = kept.nonzero().flatten(), (which == index).nonzero().flatten()
        owed = gram[places] @ weight[rows].T
        factor, failed = torch.linalg.cholesky_ex(gram[places][:, places])
        if int(failed):  # in float32, which may still be enough for what is solved with it
            factor = torch.linalg.cholesky(gram[places][:, places].to(most_precise(gram.device))).to(gram)
        solution[rows[:, None], places] = torch.cholesky_solve(owed, factor).T
    return solution


def _conjugate_gradients(weight: Tensor, mask: Tensor, gram: Tensor, start: Tensor, steps: int, tolerance: float) -> Tensor:
    """Works on columns (in, out), so that the products need no transposed copies."""
    kept = mask.T.to(weight.dtype).contiguous()
    scale = 1 / gram.diagonal()[:, None]
    solution = start.T.clone(memory_format=torch.contiguous_format)
    dense = weight.T.contiguous()
    residual = (gram @ (dense - solution)).mul_(kept)
    step = scale * residual
    power = (residual * step).sum(0)
    enough = tolerance**2 * power
    direction = step.clone()
    for _ in range(steps):
        active = power > enough
        if not bool(active.any()):
            break
        product = (gram @ direction).mul_(kept)
        curvature = (direction * product).sum(0)
        rounding = torch.finfo(gram.dtype).eps * (direction.square() / scale).sum(0)
        length = torch.where(active & (curvature > rounding), power / curvature, 0.0)  # else G is singular there, or all is too small
        solution.addcmul_(direction, length)
        residual.addcmul_(product, length, value=-1)
        torch.mul(residual, scale, out=step)
        following = (residual * step).sum(0)
        direction.mul_(torch.where(active, following / power, 0.0)).add_(step)
        power = following
    return solution.T.contiguous()
