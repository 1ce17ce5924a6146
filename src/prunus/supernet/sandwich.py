"""The largest, the smallest and random sub-networks, from labels alone."""

import random
from dataclasses import dataclass

from ..search.genome import Genome
from ..search.sampling import Loss, Sampling
from . import Net, check

__all__ = ["Sandwich"]


@dataclass(frozen=True)
class Sandwich:
    """In every step the dense model, the smallest sub-network and `subnets` random ones (Yu & Huang 2019; Klein et al. 2024)."""

    subnets: int = 2  # random sub-networks in a step
    sampling: Sampling = Sampling()  # how sub-networks are drawn

    def __post_init__(self) -> None:
        check(self)

    def nets(self, genome: Genome, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        drawn = self.sampling.draw(genome, self.subnets, rng, loss)
        return [Net(), Net(genome.smallest), *(Net(candidate) for candidate in drawn)]
