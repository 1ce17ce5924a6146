"""A small genome for tests: the space SMALL of a tiny model, the first blocks, groups of heads and channels."""

from typing import Any

from prunus.anatomy import describe
from prunus.search.genome import Architectures
from prunus.search.spaces.small import Small
from prunus.search.subnetwork import Units


def prefix_of(model: Any) -> Architectures:
    """Depth, groups and channels; the least is one of each, said by 0."""
    return Small().over(Units(describe(model), {}))
