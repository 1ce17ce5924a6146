"""The largest, the smallest and random sub-networks; the largest teaches the others."""

import random
from dataclasses import dataclass

from ..search.genome import Genome
from ..search.sampling import Loss, Sampling
from . import Net, Teacher, check

__all__ = ["OneShot"]


@dataclass(frozen=True)
class OneShot:
    """In every step the dense model, and the smallest sub-network and `subnets` random ones, which learn from it: sandwich with in-place
    distillation (Yu & Huang 2019; Klein et al. 2024, whose final comparison has it)."""

    subnets: int = 2  # random sub-networks in a step
    temperature: float = 10.0  # of what the teacher says; 1 in the authors' code, 10 in their commands
    teacher: Teacher = "inplace"  # inplace: the dense model as it is; frozen: as it was before the training
    sampling: Sampling = Sampling()  # how sub-networks are drawn

    def __post_init__(self) -> None:
        check(self)

    def nets(self, genome: Genome, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        drawn = self.sampling.draw(genome, self.subnets, rng, loss)
        return [Net(), *(Net(candidate, self.temperature) for candidate in (genome.smallest, *drawn))]
