"""The dense model alone: plain fine-tuning."""

import random
from dataclasses import dataclass
from typing import ClassVar

from ..search.genome import Genome
from ..search.sampling import Loss
from . import Net

__all__ = ["Standard"]


@dataclass(frozen=True)
class Standard:
    """In every step the loss of the dense model."""

    alone: ClassVar[bool] = True

    def nets(self, genome: Genome | None, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        return [Net()]
