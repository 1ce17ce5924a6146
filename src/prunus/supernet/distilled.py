"""The dense model alone, which learns from another model too: distillation."""

import random
from dataclasses import dataclass
from typing import ClassVar

from ..errors import RecipeError
from ..search.genome import Genome
from ..search.sampling import Loss
from . import Net

__all__ = ["Distilled"]


@dataclass(frozen=True)
class Distilled:
    """In every step the dense model, which learns from labels and from what another, larger one says (Hinton et al. 2015)."""

    temperature: float = 2.0  # of what the teacher says

    alone: ClassVar[bool] = True
    teacher: ClassVar[str] = "other"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RecipeError(f"temperature = {self.temperature:g}: expected a number above 0.")

    def nets(self, genome: Genome | None, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        return [Net(None, self.temperature)]
