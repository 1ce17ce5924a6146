"""Heads and units that stay or go one by one (Klein et al. 2024)."""

from dataclasses import dataclass

import torch

from ..genome import Architectures, thinned
from ..space import Candidate
from ..subnetwork import Kept, Units

__all__ = ["Large"]


@dataclass(frozen=True)
class Large:
    """A variable for every head (or key/value group) and every MLP channel: it stays or goes.

    LARGE of Klein et al. 2024 (TMLR), section 3.1, where the smallest sub-network has one head and one unit of the first block. Samples
    have any number of them, equally often: with a probability of their own, nearly all samples would be of half the size.
    """

    def over(self, units: Units) -> Architectures:
        counts = [site.count for site in units.sites]
        total = sum(counts)
        first = {site.name for site in units.blocks[0]}
        smallest = tuple(int(site.name in first and channel == int(units.order.get(site.name, [0])[0]))
                         for site in units.sites for channel in range(site.count))

        def kept(candidate: Candidate) -> Kept:
            parts = torch.tensor(candidate, dtype=torch.bool).split(counts)
            return {site.name: part for site, part in zip(units.sites, parts, strict=True)}

        def nearest(kept: Kept) -> Candidate:
            return tuple(torch.cat([kept[site.name] for site in units.sites]).int().tolist())

        return Architectures(units, (2,) * total, smallest, kept, lambda rng: thinned(total, rng.randint(1, total - 1), rng), nearest)
