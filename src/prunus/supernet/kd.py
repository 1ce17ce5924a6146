"""The dense model first, random sub-networks that it teaches more and more often."""

import random
from dataclasses import dataclass

from ..search.genome import Genome
from ..search.sampling import Loss, Sampling
from . import Net, Teacher, check, linearly

__all__ = ["KD"]


@dataclass(frozen=True)
class KD:
    """With a probability that grows linearly from 0 to 1 a step trains `subnets` random sub-networks, which learn from the dense model,
    else the dense model (Klein et al. 2024)."""

    subnets: int = 2  # random sub-networks in a step that trains them
    temperature: float = 10.0  # of what the teacher says; 1 in the authors' code, 10 in their commands
    teacher: Teacher = "inplace"  # inplace: the dense model as it is; frozen: as it was before the training
    sampling: Sampling = Sampling()  # how sub-networks are drawn

    def __post_init__(self) -> None:
        check(self)

    def nets(self, genome: Genome, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        if not linearly(step, steps, rng):
            return [Net()]
        return [Net(candidate, self.temperature) for candidate in self.sampling.draw(genome, self.subnets, rng, loss)]
