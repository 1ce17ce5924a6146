"""Which channels of which branches a sub-network keeps, and the dense model as that sub-network."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import RecipeError
from ..silence import gated, silenced, sliced
from ..sites import Anatomy, ChannelSite, SublayerSite
from ..subnet import in_turn
from ..surgery.cut import check_left, cut, skip
from ..surgery.write import clear_rows, module_layout
from .fits import Fits
from .thin import DENSE, Levels, Thin

__all__ = ["Kept", "Units"]

Kept = Mapping[str, Bool[Tensor, "channels"]]  # by channel site: True where a channel stays; without any, the branch goes


@dataclass(frozen=True, eq=False)
class Units:
    """What sub-networks of a dense model are made of: branches, each with channels that stay or go."""

    anatomy: Anatomy
    order: Mapping[str, Int[Tensor, "channels"]]  # by channel site: its channels, those first that a prefix keeps first
    thin: Thin | None = None  # the weights of matrices that may be sparse too; none: all are dense
    fits: Fits | None = None  # of what reads channels, to those that stay; none: its weights are the dense model's

    @cached_property
    def sites(self) -> tuple[ChannelSite, ...]:
        """The channels of every branch, in depth order. Raises RecipeError where a family has none."""
        found = tuple(site for site in self.anatomy.sites("channel") if isinstance(site, ChannelSite))
        if len(found) != len(self._branches):
            raise RecipeError("spaces of architectures: the channels of this model's branches are not described.")
        return found

    @cached_property
    def _branches(self) -> dict[str, SublayerSite]:
        return {site.name: site for site in self.anatomy.sites("sublayer") if isinstance(site, SublayerSite)}

    @cached_property
    def blocks(self) -> tuple[tuple[ChannelSite, ...], ...]:
        """The sites of every block."""
        return tuple(tuple(site for site in self.sites if site.block == depth) for depth in range(len(self.anatomy.blocks)))

    @cached_property
    def size(self) -> int:
        """Weights of all branches."""
        return sum(site.size for site in self.sites)

    def attends(self, site: ChannelSite) -> bool:
        """Whether the channels are an attention's."""
        return self._branches[site.branch].kind == "attention"

    def first(self, site: ChannelSite, count: int) -> Bool[Tensor, "channels"]:
        """The `count` channels of a site that its order has first."""
        mask = torch.zeros(site.count, dtype=torch.bool)
        mask[self.order[site.name][:count] if site.name in self.order else slice(count)] = True
        return mask

    def remaining(self, kept: Kept, levels: Levels = DENSE) -> float:
        """The share of the branches' weights that stays, and is not 0."""
        return sum(self._left(site, kept[site.name], levels.get(site.name, 0)) for site in self.sites) / self.size

    def _left(self, site: ChannelSite, mask: Tensor, level: int) -> float:
        if self.thin is None or level == 0:
            return site.size * int(mask.count_nonzero()) / site.count
        return float(self.thin.counts[site.name][level][mask].sum(dtype=torch.float64))

    @contextmanager
    def worn(self, model: Any, kept: Kept, levels: Levels = DENSE) -> Iterator[None]:
        """The model as the sub-network: of channels and branches that go nothing is computed. No weight is kept twice, and gradients
        reach the model's own parameters; not where the weights are those of a level, of which one matrix at a time is held, or are
        fitted, which are held meanwhile."""
        with (in_turn(model, self._solved(model, kept, levels)), silenced(model, self.gone(kept)),
              sliced(model, {site: kept[site.name] for site in self.sites if kept[site.name].any()})):
            yield

    def _solved(self, model: Any, kept: Kept, levels: Levels) -> dict[str, Callable[[Tensor], Tensor]]:
        """By matrix of the branches that stay: its weight at their level or as it is fitted, where that is not the dense one."""
        stay = [site for site in self.sites if kept[site.name].any()]
        if self.fits:
            return {site.consumer: _fitted(self.fits, model.get_submodule(site.consumer), site, kept[site.name]) for site in stay
                    if not kept[site.name].all()}
        return self.thin.weights(stay, levels) if self.thin else {}

    @contextmanager
    def masked(self, model: Any, kept: Kept) -> Iterator[None]:
        """The same, as wide as the dense model: what the consumers read of channels that go is 0."""
        gates = {site.consumer: kept[site.name].repeat_interleave(site.width) for site in self.sites
                 if kept[site.name].any() and not kept[site.name].all()}
        with silenced(model, self.gone(kept)), gated(model, gates):
            yield

    def gone(self, kept: Kept) -> list[SublayerSite]:
        """The branches without any channel."""
        return [self._branches[site.branch] for site in self.sites if not kept[site.name].any()]

    @torch.no_grad()
    def clear(self, model: Any, kept: Kept) -> dict[str, Tensor]:
        """Zero the channels that go of branches that stay; gives the parameters that changed, by name, as they were."""
        before: dict[str, Tensor] = {}
        for site in self.sites:
            mask = kept[site.name]
            if mask.all() or not mask.any():
                continue
            for name in site.matrices:
                for key, value in model.get_submodule(name).named_parameters():
                    before.setdefault(f"{name}.{key}", value.detach().clone())
            consumer: Any = model.get_submodule(site.consumer)
            columns = mask.repeat_interleave(site.width).to(consumer.weight)
            consumer.weight.copy_(module_layout(consumer, module_layout(consumer, consumer.weight) * columns))
            clear_rows(model, site.producers, (~mask).nonzero().flatten())
        return before

    @torch.no_grad()
    def extract(self, model: Any, kept: Kept, levels: Levels = DENSE) -> Anatomy:
        """Make the model the sub-network, for good and in place; gives the anatomy that is left. Raises RecipeError where nothing, or no
        attention of a model that has a cache, would be left."""
        check_left(self.anatomy, [site.name for site in self.gone(kept)])
        for name, solved in self._solved(model, kept, levels).items():
            weight = model.get_submodule(name).weight
            weight.copy_(solved(weight.detach()))
        left = cut(model, self.anatomy, {name: mask for name, mask in kept.items() if mask.any()})
        gone = self.gone(kept)
        return skip(model, left, [site.name for site in gone]) if gone else left


def _fitted(fits: Fits, module: Any, site: ChannelSite, mask: Bool[Tensor, "channels"]) -> Callable[[Tensor], Tensor]:
    """Makes a fit once, whoever asks how often; the first does while the module has its dense weight."""
    fit = cache(partial(fits.weight, module, site, mask))
    return lambda own: fit()
