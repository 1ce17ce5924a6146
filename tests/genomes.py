"""A small genome for tests: the space SMALL of a tiny model, the first blocks, groups of heads and channels; what MIXED needs; and what
a consumer of channels is to be refitted to."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.granularity import Unstructured
from prunus.search.genome import Architectures
from prunus.search.levels import LevelStore
from prunus.search.spaces.mixed import Mixed
from prunus.search.spaces.small import Small
from prunus.search.subnetwork import Units
from prunus.search.thin import Thin
from prunus.sites import ChannelSite, LinearSite
from prunus.traits import module_layout

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


def fitted(model: Any, site: ChannelSite, stays: Tensor, tokens: Tensor) -> Tensor:
    """The best weight of a consumer on what stays of its inputs, with a hundredth of their mean square added to the Gram's diagonal."""
    consumer: Any = model.get_submodule(site.consumer)
    read: list[Tensor] = []
    handle = consumer.register_forward_hook(lambda _, given, __: read.append(given[0].flatten(0, -2).double()))
    with torch.no_grad():
        model.eval()(input_ids=tokens)
    handle.remove()
    gram = read[0].T @ read[0]
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    dense = module_layout(consumer, consumer.weight.detach()).double()
    found = torch.zeros_like(dense)
    found[:, stays] = torch.linalg.solve(gram[stays][:, stays], gram[stays] @ dense.T).T
    return found.float()
