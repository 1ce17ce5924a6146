"""What an architecture search chooses from: sub-networks of one dense model, each a tuple of small whole numbers."""

import random
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from .space import Candidate

__all__ = ["Genome"]


@runtime_checkable
class Genome(Protocol):
    """A candidate gives every variable a value from 0 to its size - 1; at a higher value at least as much is left.

    There is no budget: what is left is one objective of several.
    """

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values every variable has."""
        ...

    @property
    def smallest(self) -> Candidate:
        """The least that may be left."""
        ...

    @property
    def largest(self) -> Candidate:
        """The dense model."""
        ...

    def draw(self, rng: random.Random) -> Candidate:
        """A sub-network as super-network training samples it."""
        ...

    def remaining(self, candidate: Candidate) -> float:
        """Parameters of the blocks that are left, as a fraction of the dense model's; nothing is run."""
        ...

    def worn(self, model: Any, candidate: Candidate) -> AbstractContextManager[None]:
        """The model as the sub-network, for as long as it is looked at or trained: no weight is copied, and gradients reach the
        dense model's own parameters."""
        ...
