"""Relative importance and activations (Zhang et al. 2024, eq. 4)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["RIA"]


@dataclass(frozen=True)
class RIA:
    """(|w| / its row's sum + |w| / its column's sum) rms(x)^power."""

    power: float = 0.5  # exponent of the activation; 0 leaves the data out

    needs: ClassVar[Needs] = "power"
    scope: ClassVar[str] = "matrix"

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        size = weight.abs()
        tiny = size.new_tensor(1e-30)  # an all-zero row or column is worth nothing, not NaN
        relative = size / size.sum(1, keepdim=True).maximum(tiny) + size / size.sum(0, keepdim=True).maximum(tiny)
        return relative * stats.rms() ** self.power
