"""Attentions and MLPs that stay or go."""

from dataclasses import dataclass

from ..genome import Architectures, switches
from ..subnetwork import Units

__all__ = ["Sublayer"]


@dataclass(frozen=True)
class Sublayer:
    """A variable for every branch: an attention or an MLP stays or goes, as a whole. Samples as `layer` does."""

    def over(self, units: Units) -> Architectures:
        return switches(units, [(site,) for sites in units.blocks for site in sites])
