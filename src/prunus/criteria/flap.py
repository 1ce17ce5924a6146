"""The squared weight times the variance of its input (An et al. 2024, eq. 5): what a constant cannot stand in for."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["FLAP"]


@dataclass(frozen=True)
class FLAP:
    """w^2 Var(x), which the paper sums over a channel.

    The paper gives every matrix a bias, the mean of what goes (section 3.3). Here `mask` adds it to the bias that a matrix has;
    most matrices have none, and get none, as their families do not know one. A search looks at candidates without it.
    """

    bias: bool = True  # whether the solver `mask` adds the mean of what goes to the matrix's bias, where there is one

    needs: ClassVar[Needs] = "power"
    scope: ClassVar[str] = "matrix"

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        return weight.square() * (stats.power - stats.mean.square()).clamp_min(0)
