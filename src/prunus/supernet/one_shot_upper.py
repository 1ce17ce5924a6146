"""The largest and random sub-networks; the largest teaches the others."""

import random
from dataclasses import dataclass

from ..search.genome import Genome
from ..search.sampling import Loss, Sampling
from . import Net, Teacher, check

__all__ = ["OneShotUpper"]


@dataclass(frozen=True)
class OneShotUpper:
    """As one_shot, without the smallest sub-network (Klein et al. 2024)."""

    subnets: int = 2  # random sub-networks in a step
    temperature: float = 10.0  # of what the teacher says; 1 in the authors' code, 10 in their commands
    teacher: Teacher = "inplace"  # inplace: the dense model as it is; frozen: as it was before the training
    sampling: Sampling = Sampling()  # how sub-networks are drawn

    def __post_init__(self) -> None:
        check(self)

    def nets(self, genome: Genome, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        drawn = self.sampling.draw(genome, self.subnets, rng, loss)
        return [Net(), *(Net(candidate, self.temperature) for candidate in drawn)]
