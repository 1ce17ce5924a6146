"""The largest, and sub-networks from a fixed list of depths; the largest teaches the others."""

import random
from dataclasses import dataclass

from ..errors import RecipeError
from ..search.genome import Genome
from ..search.sampling import Loss
from . import Net, Teacher, check

__all__ = ["Fixed"]


@dataclass(frozen=True)
class Fixed:
    """In every step the dense model, and `subnets` sub-networks that learn from it, drawn from those in which one variable of the
    genome, the depth, is between its least and its most, and all others are at their most ("fix" in the code of Klein et al. 2024,
    with depths of 11 to 2).
    """

    subnets: int = 2  # sub-networks from the list in a step
    temperature: float = 10.0  # of what the teacher says; 1 in the authors' code, 10 in their commands
    teacher: Teacher = "inplace"  # inplace: the dense model as it is; frozen: as it was before the training
    variable: int = 0  # which one of the genome is the depth

    def __post_init__(self) -> None:
        check(self)

    def nets(self, genome: Genome, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        least, most = (candidate[self.variable : self.variable + 1] for candidate in (genome.smallest, genome.largest))
        depths = range(least[0] + 1, most[0]) if least and self.variable >= 0 else range(0)
        if not depths:
            raise RecipeError(f"strategy 'fixed': the genome has no variable {self.variable} with a value between its least and its most.")
        before, after = genome.largest[: self.variable], genome.largest[self.variable + 1 :]
        return [Net(), *(Net((*before, rng.choice(depths), *after), self.temperature) for _ in range(self.subnets))]
