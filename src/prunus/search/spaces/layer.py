"""Blocks that stay or go (Klein et al. 2024)."""

from dataclasses import dataclass

from ..genome import Architectures, switches
from ..subnetwork import Units

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer:
    """A variable for every block: it stays or goes, as a whole.

    LAYER of Klein et al. 2024 (TMLR), section 3.1. Its smallest sub-network has no block; here one stays.
    """

    def over(self, units: Units) -> Architectures:
        return switches(units, units.blocks)
