"""A small genome for tests: how many blocks, groups of heads and MLP channels stay, the first ones, as in the space SMALL."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prunus.search.space import Candidate
from prunus.silence import gated, silenced
from prunus.sites import ChannelSite, SublayerSite

from .tiny import branches_of, channels_of


@dataclass(frozen=True)
class Prefix:
    """Depth, groups and channels; the least is one of each, said by 0."""

    branches: tuple[SublayerSite, ...]
    channels: tuple[ChannelSite, ...]
    sizes: tuple[int, ...]

    @property
    def smallest(self) -> Candidate:
        return (0,) * len(self.sizes)

    @property
    def largest(self) -> Candidate:
        return tuple(size - 1 for size in self.sizes)

    def draw(self, rng: random.Random) -> Candidate:
        return tuple(rng.randrange(size) for size in self.sizes)

    def remaining(self, candidate: Candidate) -> float:
        left = sum(site.size * self._kept(site, candidate) / site.count for site in self.channels if site.block <= candidate[0])
        return left / sum(site.size for site in self.channels)

    @contextmanager
    def worn(self, model: Any, candidate: Candidate) -> Iterator[None]:
        gates = {site.consumer: (torch.arange(site.count * site.width) < self._kept(site, candidate) * site.width).float()
                 for site in self.channels}
        with gated(model, gates), silenced(model, [site for site in self.branches if site.block > candidate[0]]):
            yield

    def _kept(self, site: ChannelSite, candidate: Candidate) -> int:
        return candidate[1 if site.width > 1 else 2] + 1


def prefix_of(model: Any) -> Prefix:
    """For a tiny model, whose heads have several columns each, and whose MLP channels one."""
    channels = channels_of(model)
    depth = channels[-1].block + 1
    counts = {site.width > 1: site.count for site in channels}
    return Prefix(branches_of(model), channels, (depth, counts[True], counts[False]))
