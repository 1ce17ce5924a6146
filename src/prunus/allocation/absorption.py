"""Correct any allocator for how much of a block's error the blocks after it pass on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..budget import Allocation, Budget
from ..errors import RecipeError
from ..granularity import Granularity
from ..lookup import find
from ..sites import Kind, Site
from ..stats import InputStats, LossNeeds, LossStats, Needs
from . import Allocator, fit

__all__ = ["Absorption"]


@dataclass(frozen=True)
class Absorption:
    """Errors made early are amplified on their way up, errors made late are absorbed: blocks give less the more the loss
    feels a relative change of the residual stream h that they leave, E ||d loss / d h||^2 ||h||^2, on a logarithmic scale.
    """

    base: Allocator = field(default_factory=lambda: find("allocation", "owl")())  # what is corrected
    strength: float = 0.05  # largest correction; the mean over sites is 0
    sequences: int = 16  # of the calibration text, for the gradient

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 0.5 or self.sequences < 1:
            raise RecipeError(f"strength = {self.strength:g}, sequences = {self.sequences}: expected a strength in [0, 0.5) and at "
                              "least one sequence.")
        if self.base.loss_needs and self.base.loss_needs.channels:
            raise RecipeError("base: expected an allocator that does not look at the loss channel by channel. Use another criterion.")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the base shares out, of what has matrices."""
        return tuple(kind for kind in getattr(self.base, "kinds", ("linear", "channel")) if kind != "sublayer")

    @property
    def needs(self) -> Needs:
        """What the base needs."""
        return self.base.needs

    @property
    def loss_needs(self) -> LossNeeds:
        """Gradients, and what the base wants beside them."""
        return self.base.loss_needs or LossNeeds(sequences=self.sequences)

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> tuple[Any, float]:
        assert loss is not None
        return self.base.measure(site, weight, stats, loss), math.log(max(loss.stream, 1e-30))

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        shares = self.base.allocate(sites, {name: value for name, (value, _) in measured.items()}, budget, granularity)
        feels = {name: value for name, (_, value) in measured.items()}
        middle = math.fsum(feels[site.name] * site.size for site in sites) / sum(site.size for site in sites)
        width = max(abs(value - middle) for value in feels.values())
        turn = self.strength / width if width > 1e-9 else 0.0

        def preference(site: Site, level: float) -> float:
            return shares[site.name] + level - budget.sparsity - turn * (feels[site.name] - middle)

        return fit(preference, sites, budget, granularity)
