"""ALPS arranged as its authors published it: the yardstick for the speed and the error of ours; not part of the product.

Each matrix has its own eigendecomposition in float64, the inverse is rebuilt explicitly at each check of rho, a
diagnostic error forms a full product for its diagonal, and the refit takes 10 steps with three products each.
"""

import torch
from torch import Tensor

from prunus.granularity import NM, Granularity, keep_mask

__all__ = ["alps_published"]

ITERATIONS, CHECK_EVERY, REFIT_STEPS = 300, 3, 10


def alps_published(weight: Tensor, gram: Tensor, sparsity: float, granularity: Granularity, damping: float = 0.01) -> Tensor:
    """The pruned weight (out, in)."""
    damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram))
    norm = damped.diagonal().sqrt() + 1e-8
    scaled = damped / norm / norm[:, None]
    dense = (weight * norm).T.contiguous()
    iterate = _admm(dense, scaled, sparsity, granularity)
    mask = _mask(iterate, sparsity, granularity)
    solution = _refit(iterate * mask, mask, scaled, scaled @ dense)
    return solution.T / norm


def _mask(iterate: Tensor, sparsity: float, granularity: Granularity) -> Tensor:
    if isinstance(granularity, NM):
        return keep_mask(iterate.T.abs(), sparsity, granularity).T
    kept = round((1 - sparsity) * iterate.numel())
    mask = torch.zeros(iterate.numel(), dtype=torch.bool)
    mask[iterate.abs().reshape(-1).topk(kept, sorted=False).indices] = True
    return mask.view(iterate.shape)


def _admm(dense: Tensor, gram: Tensor, sparsity: float, granularity: Granularity) -> Tensor:
    values, vectors = torch.linalg.eigh(gram.double())

    def inverse(rho: float) -> Tensor:
        return ((vectors / (values + rho)) @ vectors.T).float()

    target, rho, stepped = gram @ dense, 0.1, False
    first = sparse = dense * _mask(dense, sparsity, granularity)
    kept = int((first != 0).sum())
    dual, last = torch.zeros_like(dense), torch.ones_like(dense, dtype=torch.bool)
    solve = inverse(rho)
    for step in range(1, ITERATIONS + 1):
        iterate = solve @ (target - dual + rho * sparse)
        moved = iterate + dual / rho
        sparse = moved * _mask(moved, sparsity, granularity)
        dual = dual + rho * (iterate - sparse)
        if step % CHECK_EVERY:
            continue
        support = sparse != 0
        change, last = int((support ^ last).sum()), support
        factor, restart, stop = _schedule(change, kept, stepped)
        stepped |= factor > 1
        rho = min(rho * factor, 1e6)
        if restart:
            sparse, dual = first, torch.zeros_like(dense)
        solve = inverse(rho)
        gap = iterate - dense
        (gap.T @ gram @ gap).diagonal().sum()  # computed and thrown away by the authors' code
        if stop or (step >= 30 and change / kept < 3e-4):
            break
    return iterate


def _schedule(change: int, kept: int, stepped: bool) -> tuple[float, bool, bool]:
    """The factor on rho, whether to begin again, and whether to stop."""
    if change >= 0.1 * kept:
        return 1.3, False, False
    if change >= 0.005 * kept:
        return 1.2, False, False
    if change >= 1:
        return (1.1, False, False) if stepped else (0.2, True, False)
    return (1.0, False, True) if stepped else (0.2, False, False)


def _refit(solution: Tensor, mask: Tensor, gram: Tensor, target: Tensor) -> Tensor:
    residual = mask * (target - gram @ solution)
    direction = residual.clone()
    power = residual.square().sum(0)
    floor = 1e-10 * power  # without it, columns that have converged divide rounding by rounding and diverge
    for _ in range(REFIT_STEPS):
        product = gram @ direction
        length = torch.where(power > floor, power / (direction * product).sum(0), 0.0)
        solution = solution + length * direction
        residual = mask * (target - gram @ solution)
        (gram @ solution - target).norm(dim=0).max()  # the stopping test, on a residual that cannot vanish
        following = residual.square().sum(0)
        direction = residual + torch.where(power > floor, following / power, 0.0) * direction
        power = following
    return solution
