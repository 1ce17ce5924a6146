"""Spaces of architectures: which sub-networks a search may look at. One file each; the file name is the name."""

from typing import Protocol, runtime_checkable

from ..genome import Genome
from ..subnetwork import Units

__all__ = ["ArchitectureSpace"]


@runtime_checkable
class ArchitectureSpace(Protocol):
    """A frozen dataclass whose fields say how fine the space is; `over` a model's branches and channels it is a Genome."""

    def over(self, units: Units) -> Genome:
        """The genome. Raises RecipeError for a model that has no such sub-networks."""
        ...
