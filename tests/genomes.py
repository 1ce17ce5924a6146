"""A small genome for tests: the space SMALL of a tiny model, the first blocks, groups of heads and channels; and what MIXED needs."""

from pathlib import Path
from typing import Any

import torch

from prunus.anatomy import describe
from prunus.granularity import Unstructured
from prunus.search.genome import Architectures
from prunus.search.levels import LevelStore
from prunus.search.spaces.mixed import Mixed
from prunus.search.spaces.small import Small
from prunus.search.subnetwork import Units
from prunus.search.thin import Thin
from prunus.sites import LinearSite

from .tiny import channels_of


def prefix_of(model: Any) -> Architectures:
    """Depth, groups and channels; the least is one of each, said by 0."""
    return Small().over(Units(describe(model), {}))


def thin_of(model: Any, space: Mixed, tokens: torch.Tensor, folder: Path) -> Thin:
    """The weights of all branches at the levels of a space."""
    anatomy = describe(model)
    sites = {site: Unstructured("row") for site in anatomy.sites("linear") if isinstance(site, LinearSite)}
    store = LevelStore.build(folder, model, anatomy, sites, tokens, space.solver, space.sparsities, "a")
    return Thin.counted(store, model, channels_of(model))
