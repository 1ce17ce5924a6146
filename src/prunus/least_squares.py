"""The best values on a given support: one least-squares problem per output, all with the same Gram."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["fit_support"]


def fit_support(
    weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], gram: Float[Tensor, "in in"],
    start: Float[Tensor, "out in"] | None = None, steps: int = 500, tolerance: float = 1e-7,
) -> Float[Tensor, "out in"]:
    """argmin of tr((V - W) G (V - W)^T) over V that are 0 outside `mask`, for a positive definite G.

    Rows that share one support are solved exactly. Otherwise by conjugate gradients preconditioned with the
    diagonal (Meng et al. 2024, Algorithm 2), each row with its own step lengths and a residual that is masked,
    so that it can vanish: a row stops when its residual is below `tolerance` times its first.
    """
    if bool((mask == mask[:1]).all()):
        return _shared(weight, mask[0], gram)
    return _conjugate_gradients(weight, mask, gram, weight * mask if start is None else start, steps, tolerance)


def _shared(weight: Tensor, kept: Tensor, gram: Tensor) -> Tensor:
    solution = torch.zeros_like(weight)
    if bool(kept.any()):
        factor = torch.linalg.cholesky(gram[kept][:, kept])
        solution[:, kept] = torch.cholesky_solve(gram[kept] @ weight.T, factor).T
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
        length = torch.where(active, power / (direction * product).sum(0), 0.0)
        solution.addcmul_(direction, length)
        residual.addcmul_(product, length, value=-1)
        torch.mul(residual, scale, out=step)
        following = (residual * step).sum(0)
        direction.mul_(torch.where(active, following / power, 0.0)).add_(step)
        power = following
    return solution.T.contiguous()
