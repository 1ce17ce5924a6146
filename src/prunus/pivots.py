"""Which columns to keep when the others are made up for by least squares: exact losses and gains, one move at a time."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .traits import most_precise

__all__ = ["Pivoted"]

_TRIES = 8  # groups that might return are looked at before every exchange


def _diagonal_blocks(matrix: Float[Tensor, "in in"], width: int) -> Float[Tensor, "groups width width"]:
    """The square blocks on the diagonal."""
    groups = len(matrix) // width
    index = torch.arange(groups, device=matrix.device)
    return matrix.view(groups, width, groups, width)[index, :, index, :]


def _group_losses(weight: Float[Tensor, "out in"], blocks: Float[Tensor, "groups width width"]) -> Float[Tensor, "groups"]:
    """tr(W_g B_g^-1 W_g^T) of every group of columns: with B the blocks of an inverse Gram, what the error grows by when the group
    goes and all columns that are left are refitted (Kurtic et al. 2023, section 3.1)."""
    width = blocks.shape[1]
    if width == 1:
        return weight.square().sum(0) / blocks.flatten()
    parts = weight.unflatten(1, (-1, width)).permute(1, 2, 0)  # groups, width, out
    return (parts * torch.linalg.solve(blocks, parts)).sum(dim=(1, 2))


class Pivoted:
    """A = the damped Gram and C = W times it, both pivoted on the columns that stay, a group of neighbours at a time.

    Where columns stay, C holds their refitted weights and A the inverse of their Gram; elsewhere C holds what the outputs still
    owe to a column, and A the Gram of what the others do not explain of it. tr(C_g (A_gg)^-1 C_g^T) is what the error grows
    by when a group goes that stays, and what it falls by when one stays that has gone.
    """

    def __init__(self, weight: Float[Tensor, "out in"], inverse: Float[Tensor, "in in"], width: int) -> None:
        self.values, self.pivoted, self.width = weight.clone(), inverse, width
        self.stays = torch.ones(weight.shape[1] // width, dtype=torch.bool, device=weight.device)

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"], factor: Float[Tensor, "in in"], width: int) -> "Pivoted":
        """All columns stay; `factor` is the upper Cholesky factor of the inverse of the damped Gram."""
        precise = most_precise(weight.device)
        return cls(weight.to(precise), (factor.T @ factor).to(precise), width)

    def solution(self, weight: Float[Tensor, "out in"]) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
        """What the weight, in whose dtype it is given, has become; and its mask."""
        mask = self.stays.repeat_interleave(self.width).expand(weight.shape).clone()
        return self.values.to(weight) * mask, mask

    def losses(self) -> Float[Tensor, "groups"]:
        """Of every group that stays; of the others, the gains."""
        return _group_losses(self.values, _diagonal_blocks(self.pivoted, self.width))

    def cheapest(self, count: int = 1) -> Int[Tensor, "count"]:
        """The groups that are missed least, each for itself."""
        return self.losses().masked_fill(~self.stays, torch.inf).argsort(stable=True)[:count]

    def exchange(self) -> bool:
        """The best exchange among the groups whose return would bring most; whether there is one that helps."""
        losses = self.losses()
        gains = losses.masked_fill(self.stays, -torch.inf)
        best = (1e-6 * float(losses[self.stays].sum()), -1, -1)  # rounding is no gain
        for back in gains.topk(min(_TRIES, int((~self.stays).sum()))).indices.tolist():
            left, lost = self._without(back)
            best = max(best, (float(gains[back]) - lost, back, left))
        if best[1] < 0:
            return False
        for group in best[1:]:
            self.move(torch.tensor([group], device=self.stays.device))
        return True

    def _without(self, back: int) -> tuple[int, float]:
        """Which group would be missed least if `back` had returned, and how much."""
        columns, row = self._pivot(torch.tensor([back], device=self.stays.device))
        blocks = _diagonal_blocks(self.pivoted, self.width)
        sides = (self.pivoted[:, columns].unflatten(0, (-1, self.width)), row.unflatten(1, (-1, self.width)).transpose(0, 1))
        blocks = blocks - sides[0] @ sides[1]
        blocks[~self.stays] = torch.eye(self.width).to(blocks)  # that of the group itself is singular
        losses = _group_losses(self.values - self.values[:, columns] @ row, blocks).masked_fill(~self.stays, torch.inf)
        return int(losses.argmin()), float(losses.min())

    def _pivot(self, groups: Int[Tensor, "count"]) -> tuple[Int[Tensor, "columns"], Float[Tensor, "columns in"]]:
        """Where groups g are, and A_gg^-1 A_g."""
        columns = (groups[:, None] * self.width + torch.arange(self.width, device=groups.device)).flatten()
        return columns, torch.linalg.solve(self.pivoted[columns][:, columns], self.pivoted[columns])

    def move(self, groups: Int[Tensor, "count"]) -> None:
        """Groups go that stay, or stay that have gone, all at once."""
        columns, row = self._pivot(groups)
        inverse = torch.linalg.inv(self.pivoted[columns][:, columns])
        left, values = self.pivoted[:, columns], self.values[:, columns]
        self.values.addmm_(values, row, alpha=-1)
        self.pivoted.addmm_(left, row, alpha=-1)
        self.values[:, columns] = values @ inverse
        self.pivoted[:, columns] = left @ inverse
        self.pivoted[columns] = -row
        self.pivoted[columns[:, None], columns] = inverse
        self.stays[groups] = ~self.stays[groups]
