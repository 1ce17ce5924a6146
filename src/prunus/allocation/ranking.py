"""Rank the channels of all sites together, and take the least."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ..budget import Allocation, Budget
from ..criteria import Criterion, loss_needs, saliency
from ..criteria.flap import FLAP
from ..granularity import Granularity
from ..sites import ChannelSite, Kind, Site
from ..stats import InputStats, LossNeeds, Needs, most
from . import fit

__all__ = ["Ranking"]


@dataclass(frozen=True)
class Ranking:
    """An et al. 2024 (AAAI), eq. 6 and 7: saliencies of the consumer's columns, (s - mean) / deviation of their site, compete across
    all sites; a channel of several columns (a key/value group) has the mean of theirs. The least go until the budget is met,
    every channel with all the weights that go with it. Every site keeps a channel (or `multiple` of them).

    Departs from the authors' code, which squares the saliencies of attention first. Not standardised, what competes is a channel's
    saliency per weight that goes with it: for criteria that mean the same everywhere, as those of the loss do.
    """

    criterion: Criterion = FLAP()  # what saliency is
    standardise: bool = True  # within each site; false: saliency per weight, as it is

    kinds: ClassVar[tuple[Kind, ...]] = ("channel",)

    @property
    def needs(self) -> Needs:
        """What the criterion needs, and no less than what it takes to see every site."""
        return most("power", self.criterion.needs)

    @property
    def loss_needs(self) -> LossNeeds | None:
        """What the criterion wants to know."""
        return loss_needs(self.criterion)

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: Any) -> list[float]:
        """What the site's channels compete with, ascending."""
        assert isinstance(site, ChannelSite)
        columns = saliency(self.criterion, weight, stats, loss).sum(0).cpu().double()
        scores = self._standardised(site, columns) if self.standardise else columns.view(site.count, -1).sum(1) * site.count / site.size
        ascending: list[float] = scores.sort().values.tolist()
        return ascending

    def _standardised(self, site: ChannelSite, columns: Float[Tensor, "in"]) -> Float[Tensor, "channels"]:
        away = columns - columns.mean()
        deviation = float(away.square().mean().sqrt())
        if deviation <= 1e-9 * float(columns.mean()):
            away, deviation = away * 0, 1.0  # columns that are equal but for rounding
        return away.view(site.count, site.width).mean(1) / deviation

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        # By score, and by place in the site among equals: these go one by one, and those of sites that are alike together.
        keys = {site.name: [(score, place / len(measured[site.name])) for place, score in enumerate(measured[site.name])]
                for site in sites}
        order = sorted(key for several in keys.values() for key in several)

        def share(site: Site, level: float) -> float:
            assert isinstance(site, ChannelSite)
            taken = min(math.ceil(level * len(order)), len(order))
            gone = bisect_right(keys[site.name], order[taken - 1]) if taken > 0 else 0
            return min(gone, max(site.count - site.multiple, 0)) / site.count

        return fit(share, sites, budget, granularity)
