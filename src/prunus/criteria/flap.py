"""The squared weight times the variance of its input (An et al. 2024, eq. 5): what a constant cannot stand in for."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["FLAP"]


@dataclass(frozen=True)
class FLAP:
    """w^2 Var(x), which the paper sums over a channel. Its bias, the mean of what goes, is not added: there is none to add it
    to in most models.
    """

    needs: ClassVar[Needs] = "power"
    scope: ClassVar[str] = "matrix"

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        return weight.square() * (stats.power - stats.mean.square()).clamp_min(0)
