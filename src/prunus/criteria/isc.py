"""Improved saliency criterion: the sum of OBD's and OBS's (Shao et al. 2024, eq. 6)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["ISC"]


@dataclass(frozen=True)
class ISC:
    """w^2 (G_jj + 1 / [G^-1]_jj), with the damped Gram G.

    Departs from the authors' code, which uses the diagonal of the Cholesky factor where the paper has the inverse.
    """

    damping: float = 0.01  # added to the Gram's diagonal, as a fraction of its mean

    needs: ClassVar[Needs] = "gram"
    scope: ClassVar[str] = "matrix"

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        inverse_diagonal = stats.inverse_cholesky(self.damping).square().sum(0)
        return weight.square() * (stats.power + 1 / inverse_diagonal)
