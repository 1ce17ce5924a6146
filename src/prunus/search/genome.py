"""What an architecture search chooses from: sub-networks of one dense model, each a tuple of small whole numbers."""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..sites import Anatomy, ChannelSite
from .space import Candidate
from .subnetwork import Kept, Units
from .thin import DENSE, Levels

__all__ = ["Architectures", "Genome", "Told", "prefixes", "switches", "thinned"]

Told = Callable[[Candidate], tuple[float | None, ...]]  # the objectives that need no look at the sub-network; None for those that do


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
        """The share of the weights of all branches that is left, and not 0; nothing is run."""
        ...

    def worn(self, model: Any, candidate: Candidate) -> AbstractContextManager[None]:
        """The model as the sub-network, for as long as it is looked at or trained: no weight is copied, and gradients reach the
        dense model's own parameters, unless a solver has changed them."""
        ...


@dataclass(frozen=True, eq=False)
class Architectures:
    """The Genome of a model's branches and channels; a space says what the variables mean."""

    units: Units
    sizes: tuple[int, ...]
    smallest: Candidate
    kept: Callable[[Candidate], Kept]  # which channels of which branches the sub-network has
    sample: Callable[[random.Random], Candidate] | None = None  # for training; none: every variable by itself
    nearest: Callable[[Kept], Candidate] | None = None  # that keeps about as many channels everywhere; none: the space has no such
    levels: Callable[[Candidate], Levels] = lambda candidate: DENSE  # how sparse their weights are
    told: Told | None = None  # None: nobody has said which objectives there are

    @property
    def largest(self) -> Candidate:
        return tuple(size - 1 for size in self.sizes)

    def draw(self, rng: random.Random) -> Candidate:
        return self.sample(rng) if self.sample else tuple(rng.randrange(size) for size in self.sizes)

    def remaining(self, candidate: Candidate) -> float:
        return self.units.remaining(self.kept(candidate), self.levels(candidate))

    def worn(self, model: Any, candidate: Candidate) -> AbstractContextManager[None]:
        return self.units.worn(model, self.kept(candidate), self.levels(candidate))

    def extract(self, model: Any, candidate: Candidate) -> Anatomy:
        """Make the model the sub-network, for good and in place; as Units does."""
        return self.units.extract(model, self.kept(candidate), self.levels(candidate))


def prefixes(units: Units, steps: int) -> Architectures:
    """A variable for every branch: how many of its channels stay, the first in order; `steps` numbers beside 0, evenly spaced, or with
    0 steps every number. The smallest sub-network has one step of each."""
    most = [min(steps, site.count) if steps else site.count for site in units.sites]

    def kept(candidate: Candidate) -> Kept:
        return {site.name: units.first(site, _count(value, site.count, steps))
                for site, value, steps in zip(units.sites, candidate, most, strict=True)}

    def nearest(kept: Kept) -> Candidate:
        found = ((int(kept[site.name].sum()), site.count, steps) for site, steps in zip(units.sites, most, strict=True))
        return tuple(min(range(steps + 1), key=lambda value: abs(_count(value, count, steps) - wanted)) for wanted, count, steps in found)

    return Architectures(units, tuple(steps + 1 for steps in most), (1,) * len(most), kept, nearest=nearest)


def _count(value: int, count: int, steps: int) -> int:
    """Channels of `count` that a value from 0 to `steps` means."""
    return -(-value * count // steps)


def switches(units: Units, groups: Sequence[Sequence[ChannelSite]]) -> Architectures:
    """A variable for every group of branches, which stay or go together. The smallest sub-network has the first group; samples have any
    number of them, one at least, equally often."""
    def kept(candidate: Candidate) -> Kept:
        return {site.name: units.first(site, site.count if stays else 0)
                for group, stays in zip(groups, candidate, strict=True) for site in group}

    return Architectures(units, (2,) * len(groups), (1, *[0] * (len(groups) - 1)), kept,
                         lambda rng: thinned(len(groups), rng.randrange(len(groups)), rng))


def thinned(count: int, without: int, rng: random.Random) -> Candidate:
    """1 for each of `count` variables but some, taken at random."""
    gone = set(rng.sample(range(count), without))
    return tuple(int(index not in gone) for index in range(count))
