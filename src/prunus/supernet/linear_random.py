"""The dense model first, random sub-networks more and more often."""

import random
from dataclasses import dataclass

from ..search.genome import Genome
from ..search.sampling import Loss, Sampling
from . import Net, check, linearly

__all__ = ["LinearRandom"]


@dataclass(frozen=True)
class LinearRandom:
    """With a probability that grows linearly from 0 to 1 a step trains `subnets` random sub-networks, else the dense model (Klein et al.
    2024). All learn from labels alone."""

    subnets: int = 2  # random sub-networks in a step that trains them
    sampling: Sampling = Sampling()  # how sub-networks are drawn

    def __post_init__(self) -> None:
        check(self)

    def nets(self, genome: Genome, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        if not linearly(step, steps, rng):
            return [Net()]
        return [Net(candidate) for candidate in self.sampling.draw(genome, self.subnets, rng, loss)]
