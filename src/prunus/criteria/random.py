"""No criterion at all: the floor that every other has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["Random"]


@dataclass(frozen=True)
class Random:
    """Uniform random saliencies; the same for every matrix of one shape."""

    seed: int = 0  # of the saliencies

    needs: ClassVar[Needs] = "nothing"
    scope: ClassVar[str] = "matrix"

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(weight.shape, generator=generator).to(weight)
