"""Weight times the root mean square of its input (Sun et al. 2024, eq. 1)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["Wanda"]


@dataclass(frozen=True)
class Wanda:
    """|w| rms(x)."""

    needs: ClassVar[Needs] = "power"
    scope: ClassVar[str] = "row"

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        return weight.abs() * stats.rms()
