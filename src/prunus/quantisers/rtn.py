"""Round to nearest: every weight by itself, without data."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..quantisation import Grid, Rounded
from ..stats import InputStats, Needs

__all__ = ["RTN"]


@dataclass(frozen=True)
class RTN:
    """The nearest code; the scale of a group from its largest weight."""

    needs: ClassVar[Needs] = "nothing"

    def quantise(self, weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], grid: Grid, stats: InputStats,
                 scales: torch.dtype = torch.float32) -> Rounded:
        groups = (weight * mask).reshape(-1, grid.width(weight.shape[1]))
        scale = grid.fit(groups, scales)
        codes = grid.codes(groups, scale[:, None]).view_as(weight)
        return Rounded(codes.to(torch.int8), scale.view(len(weight), -1))
