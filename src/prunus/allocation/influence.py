"""Take the branches, or the blocks, that change the stream of hidden states least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..budget import Allocation, Budget
from ..errors import RecipeError
from ..granularity import Granularity
from ..sites import Kind, Site
from ..stats import BranchStats, ChannelLoss, LossNeeds, Needs
from ..traits import total
from . import Denominator, Per, cost_of, group_of

__all__ = ["Influence"]


@dataclass(frozen=True)
class Influence:
    """The influence of a branch is 1 - cos(stream before it, stream behind it) (LLM-Drop, He et al. 2024); of a block the same
    of its input and its output (ShortGPT, Men et al. 2024). The least goes, and the next, until the budget is met.

    With the metric taylor it is sum |w g| over the weights w of all matrices of the branch, or of the block's, with g the gradient
    of the loss over all sequences (Shortened LLaMA, Kim et al. 2024; its "+", that the first four blocks and the last two stay, is
    said by `skip`). Departs from the authors' code: norms do not count.
    """

    per: Per = "sublayer"  # what goes together: sublayer, or block
    metric: Literal["cosine", "relative", "taylor"] = "cosine"  # relative: the branch's norm over the stream's; taylor: of the loss
    denominator: Denominator = "none"  # of the influence: none, weights, latency or cache; who saves nothing goes last
    sequences: int = 16  # of the calibration text, for the gradient that taylor needs

    kinds: ClassVar[tuple[Kind, ...]] = ("sublayer",)  # it shares out whole branches
    needs: ClassVar[Needs] = "nothing"

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise RecipeError(f"sequences = {self.sequences}: expected at least one.")
        if self.per == "matrix" or (self.per == "block" and self.metric == "relative"):
            raise RecipeError(f"per = {self.per!r}, metric = {self.metric!r}: expected 'sublayer', or 'block' with the metric "
                              "'cosine' or 'taylor'.")

    @property
    def loss_needs(self) -> LossNeeds | None:
        """Gradients, where taylor asks for them."""
        return LossNeeds(sequences=self.sequences, channels=("element",)) if self.metric == "taylor" else None

    def measure(self, site: Site, weight: Tensor, stats: BranchStats, loss: ChannelLoss | None) -> float:
        """The influence of the branch, or of its block; with taylor, the branch's part of it."""
        if loss is not None:
            return total(loss.sums("element"))
        if self.metric == "relative":
            return stats.relative
        return 1 - (stats.block if self.per == "block" else stats.cosine)

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        groups: dict[str, list[Site]] = {}
        for site in sorted(sites, key=lambda site: (site.block, site.name)):  # ties do not depend on the order
            groups.setdefault(group_of(site, self.per), []).append(site)

        def order(group: list[Site]) -> tuple[bool, float]:
            influence, cost = sum(measured[site.name] for site in group), cost_of(group, self.denominator)
            return cost == 0, influence / (cost or 1)

        shares = {site.name: 0.0 for site in sites}
        for group in sorted(groups.values(), key=order):
            if budget.met(sites, shares):
                break
            shares |= {site.name: 1.0 for site in group}
        return shares
