"""Random sub-networks, from labels alone."""

import random
from dataclasses import dataclass

from ..search.genome import Genome
from ..search.sampling import Loss, Sampling
from . import Net, check

__all__ = ["Random"]


@dataclass(frozen=True)
class Random:
    """In every step the loss of `subnets` random sub-networks (Klein et al. 2024)."""

    subnets: int = 2  # random sub-networks in a step
    sampling: Sampling = Sampling()  # how sub-networks are drawn

    def __post_init__(self) -> None:
        check(self)

    def nets(self, genome: Genome, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        return [Net(candidate) for candidate in self.sampling.draw(genome, self.subnets, rng, loss)]
