"""Heads and units of every block by itself (Klein et al. 2024)."""

from dataclasses import dataclass

from ...errors import RecipeError
from ..genome import Architectures, prefixes
from ..subnetwork import Units

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
        return prefixes(units, self.steps)
