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
    """Frantar et al. 2023, Algorithm 1, with the columns in their order, and scales of a group fitted when its turn comes.

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
        factor = stats.inverse_cholesky(self.damping)
        unit = factor / factor.diagonal()[:, None]  # the error of a weight is then its change itself
        work, kept = weight.T.contiguous(), mask.T.contiguous()  # a column lies together in memory
        error, codes = torch.empty_like(work), torch.empty_like(work)
        width = grid.width(len(work))
        found: list[Tensor] = []
        for start in range(0, len(work), width):
            end = start + width
            scale = grid.fit((work[start:end] * kept[start:end]).T, scales)
            found.append(scale)
            for low in range(start, end, _INNER):
                high = min(low + _INNER, end)
                for column in range(low, high):
                    if column > low:
                        work[column].addmv_(error[low:column].T, unit[low:column, column], alpha=-1)
                    torch.mul(grid.codes(work[column], scale), kept[column], out=codes[column])
                    torch.sub(work[column], codes[column] * scale, out=error[column])
                work[high:].addmm_(unit[low:high, high:].T, error[low:high], alpha=-1)
        return Rounded(codes.T.contiguous().to(torch.int8), torch.stack(found, 1))
