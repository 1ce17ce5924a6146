"""Depth, heads and units, the same in all blocks that stay (Klein et al. 2024)."""

from dataclasses import dataclass

from ...errors import RecipeError
from ..genome import Architectures
from ..space import Candidate
from ..subnetwork import Kept, Units

__all__ = ["Small"]


@dataclass(frozen=True)
class Small:
    """Three variables: how many blocks stay, and how many heads (or key/value groups) and MLP channels in each of them, at least one.

    SMALL of Klein et al. 2024 (TMLR), section 3.1: the first blocks, heads and channels stay, in the order in which they are kept.
    """

    steps: int = 0  # numbers of MLP channels to choose from, evenly spaced; 0: every number

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise RecipeError(f"steps = {self.steps}: expected no negative number.")

    def over(self, units: Units) -> Architectures:
        if len({tuple(map(units.attends, sites)) for sites in units.blocks}) > 1:
            raise RecipeError("space small: the blocks of this model do not all have the same branches. Use medium.")
        sizes = (len(units.blocks), *(self._size(max(site.count for site in sites)) for sites in zip(*units.blocks, strict=True)))

        def kept(candidate: Candidate) -> Kept:
            depth, *widths = (value + 1 for value in candidate)
            return {site.name: units.first(site, -(-width * site.count // size) if place < depth else 0)
                    for place, sites in enumerate(units.blocks) for site, width, size in zip(sites, widths, sizes[1:], strict=True)}

        return Architectures(units, sizes, (0,) * len(sizes), kept)

    def _size(self, count: int) -> int:
        return min(self.steps, count) if self.steps else count
