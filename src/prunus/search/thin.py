"""The weights that branches have at some levels of sparsity: solved once, and not held until they compute."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..sites import ChannelSite
from ..surgery.write import module_layout
from ..traits import owned_rows
from .levels import LevelStore

__all__ = ["DENSE", "Levels", "Thin"]

Levels = Mapping[str, int]  # by channel site: which level of a store the matrices of its branch have; what is not named is dense
DENSE: Levels = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Thin:
    """A store of all matrices of all branches, and how many weights every channel has at every level."""

    store: LevelStore
    counts: Mapping[str, Float[Tensor, "levels channels"]]  # by channel site: weights that are not 0

    @classmethod
    @torch.no_grad()
    def counted(cls, store: LevelStore, model: Any, sites: Sequence[ChannelSite]) -> "Thin":
        """Every weight of a branch is of one channel: in a row of a producer, or in a column of the consumer. Reads the store once, one
        matrix at a time."""
        return cls(store, {site.name: torch.stack([_counts(store, model, site, level) for level in range(len(store.levels))])
                           for site in sites})

    def weights(self, sites: Sequence[ChannelSite], levels: Levels) -> dict[str, Callable[[Tensor], Tensor]]:
        """By path of each matrix that is not dense: what makes its weight, in the module's own layout and dtype, of the dense one."""
        return {name: partial(self.store.weight, name, level) for site in sites if (level := levels.get(site.name, 0))
                for name in site.matrices}


def _counts(store: LevelStore, model: Any, site: ChannelSite, level: int) -> Float[Tensor, "channels"]:
    """Weights that every channel has left; of the dense matrices all are."""
    if store.levels[level] == 0:
        return torch.full((site.count,), site.size / site.count)
    total = torch.zeros(site.count)
    for name in site.matrices:
        module: Any = model.get_submodule(name)
        left = (module_layout(module, store.weight(name, level, module.weight.detach())) != 0).cpu()
        for producer in site.producers:
            if producer.name == name:
                rows = left[owned_rows(torch.arange(site.count), producer.rows, producer.offset)].sum(1)
                total += rows.view(site.count, producer.rows).sum(1)
        if name == site.consumer:
            total += left.sum(0).view(site.count, site.width).sum(1)
    return total
