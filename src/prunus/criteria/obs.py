"""Optimal brain surgeon: the error that remains after the best update (Hassibi & Stork 1993)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["OBS"]


@dataclass(frozen=True)
class OBS:
    """w^2 / [G^-1]_jj, with the damped Gram G."""

    damping: float = 0.01  # added to the Gram's diagonal, as a fraction of its mean

    needs: ClassVar[Needs] = "gram"
    scope: ClassVar[str] = "matrix"

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        return weight.square() / stats.inverse_cholesky(self.damping).square().sum(0)
