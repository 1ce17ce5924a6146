"""The absolute value of the weight (Han et al. 2015)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude:
    """|w|; needs no data."""

    needs: ClassVar[Needs] = "nothing"
    scope: ClassVar[str] = "matrix"

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        return weight.abs()
