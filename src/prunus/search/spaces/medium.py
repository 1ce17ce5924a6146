"""Heads and units of every block by itself (Klein et al. 2024)."""

from dataclasses import dataclass

from ...errors import RecipeError
from ..genome import Architectures
from ..space import Candidate
from ..subnetwork import Kept, Units

__all__ = ["Medium"]


@dataclass(frozen=True)
class Medium:
    """A variable for every branch: how many of its heads (or key/value groups) or MLP channels stay; at 0 it goes as a whole.

    MEDIUM of Klein et al. 2024 (TMLR), section 3.1, where the smallest sub-network has one head and one unit in every block. With few
    steps it is depth and width in one: blocks go too.
    """

    steps: int = 0  # numbers of channels to choose from beside 0, evenly spaced; 0: every number

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise RecipeError(f"steps = {self.steps}: expected no negative number.")

    def over(self, units: Units) -> Architectures:
        most = [min(self.steps, site.count) if self.steps else site.count for site in units.sites]

        def kept(candidate: Candidate) -> Kept:
            return {site.name: units.first(site, _count(value, site.count, steps))
                    for site, value, steps in zip(units.sites, candidate, most, strict=True)}

        def nearest(kept: Kept) -> Candidate:
            found = ((int(kept[site.name].sum()), site.count, steps) for site, steps in zip(units.sites, most, strict=True))
            return tuple(min(range(steps + 1), key=lambda value: abs(_count(value, count, steps) - wanted))
                         for wanted, count, steps in found)

        return Architectures(units, tuple(steps + 1 for steps in most), (1,) * len(most), kept, nearest=nearest)


def _count(value: int, count: int, steps: int) -> int:
    """Channels of `count` that a value from 0 to `steps` means."""
    return -(-value * count // steps)
