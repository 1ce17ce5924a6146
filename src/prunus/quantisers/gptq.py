"""Column by column, pushing each rounding error into the columns still to come (Frantar et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import RecipeError
from ..quantisation import Grid, Rounded
from ..stats import InputStats, Needs

__all__ = ["GPTQ"]

_INNER = 32  # columns between two matrix products


@dataclass(frozen=True)
class GPTQ:
    """Frantar et al. 2023, Algorithm 1, with the inputs in descending order of their power, and scales that are fitted before: groups
    are of neighbours all the same, as files want them.

    A pruned weight is rounded to 0, whatever was pushed into it, and what that takes away is pushed on like any rounding error
    (Frantar & Alistarh 2023, section 3.5, with the mask given beforehand).
    """

    damping: float = 0.01  # added to the Gram's diagonal, as a fraction of its mean

    needs: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise RecipeError(f"damping = {self.damping:g}: expected no negative damping.")

    def quantise(self, weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], grid: Grid, stats: InputStats,
                 scales: torch.dtype = torch.float32) -> Rounded:
        stats.check()
        order = stats.power.argsort(descending=True, stable=True)
        factor = stats.inverse_cholesky(self.damping, order)
        unit = factor / factor.diagonal()[:, None]  # the error of a weight is then its change itself
        work, kept = (part.T[order].contiguous() for part in (weight, mask))  # a column lies together in memory
        width = grid.width(len(work))
        scale = grid.fit((weight * mask).reshape(-1, width), scales).view(len(weight), -1)
        own = scale.T[order // width]
        error, codes = torch.empty_like(work), torch.empty_like(work)
        for low in range(0, len(work), _INNER):
            high = min(low + _INNER, len(work))
            for column in range(low, high):
                if column > low:
                    work[column].addmv_(error[low:column].T, unit[low:column, column], alpha=-1)
                torch.mul(grid.codes(work[column], own[column]), kept[column], out=codes[column])
                torch.sub(work[column], codes[column] * own[column], out=error[column])
            work[high:].addmm_(unit[low:high, high:].T, error[low:high], alpha=-1)
        found = torch.empty_like(codes, dtype=torch.int8)
        found[order] = codes.to(torch.int8)
        return Rounded(found.T.contiguous(), scale)
