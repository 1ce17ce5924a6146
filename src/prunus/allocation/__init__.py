"""Allocators: how much each site gives, in one pass. One file each; the file name is the name."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from ..budget import Allocation, Budget
from ..errors import RecipeError
from ..granularity import Columns, Granularity, Unstructured, snap
from ..problem import LayerProblem
from ..sites import ChannelSite, LinearSite, Site, SublayerSite
from ..solvers import Solver
from ..stats import InputStats, LossNeeds, Needs

__all__ = ["Allocator", "Denominator", "Per", "columns_of", "cost_of", "fit", "group_of", "lean", "per_unit", "pooled", "probed", "reach"]

Per = Literal["matrix", "sublayer", "block"]  # what gets one share: a site, a residual branch, a block
Denominator = Literal["none", "weights", "latency", "cache"]  # what an importance is counted for each unit of


@runtime_checkable
class Allocator(Protocol):
    """States how a budget is shared among sites.

    A frozen dataclass whose fields are its hyper-parameters. `measure` is called once per site, while statistics
    stream by (not at all when it needs nothing), and returns something small; `loss` is None unless it asks for the
    loss. One that shares out whole branches, or channels alone, says so: `kinds = ("sublayer",)`. `allocate` turns all
    measurements into an allocation that meets the budget after rounding to whole weights, does not depend on the order of the sites, and
    is uniform on identical sites.
    """

    @property
    def needs(self) -> Needs:
        """The least statistics it can live on."""
        ...

    @property
    def loss_needs(self) -> LossNeeds | None:
        """What it wants to know of the loss; None when nothing."""
        ...

    def measure(self, site: Site, weight: Tensor, stats: Any, loss: Any) -> Any:
        """What is remembered of one site; `stats` are InputStats of a matrix, or BranchStats of a sublayer, of which `weight`
        is empty; `loss` is LossStats of the matrix, or ChannelLoss of the site where `loss_needs` says channels."""
        ...

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        """Site name to sparsity."""
        ...


def reach(site: Site, sparsity: float, granularity: Granularity) -> float:
    """The sparsity that a site will really have, in whole weights, channels or branches."""
    match site:
        case LinearSite():
            return snap(sparsity, site.shape, granularity)
        case ChannelSite():
            return snap(sparsity, (1, site.count * site.width), columns_of(site))
        case SublayerSite():
            return float(sparsity >= 0.5)


def columns_of(site: ChannelSite) -> Columns:
    """The shape that channels leave in their consumer. Whole ones go, to the nearest number: the budget is met by all sites together."""
    return Columns(site.width, site.multiple, nearest=True)


def fit(preference: Callable[[Site, float], float], sites: Sequence[Site], budget: Budget,
        granularity: Granularity) -> Allocation:
    """Meet a budget exactly: the smallest level x for which `preference(site, x)`, in reachable steps, is within it.

    Raises RecipeError when no level is.
    """
    def at(level: float) -> dict[str, float]:
        return {site.name: min(max(preference(site, level), 0.0), 1.0) for site in sites}

    def reached(asked: Allocation) -> Allocation:
        return {site.name: reach(site, asked[site.name], granularity) for site in sites}

    def met(level: float) -> bool:
        return budget.met(sites, reached(at(level)))

    low, high = -1.0, 2.0  # wide enough for preferences that add to the level or take from it
    if not met(high):
        raise RecipeError(f"budget {budget.limit:g}: cannot be met by {len(sites)} sites at granularity {granularity}.")
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if met(middle) else (middle, high)
    plain = at(budget.sparsity)  # the round number, where it reaches the same
    return plain if met(budget.sparsity) and reached(plain) == reached(at(high)) else at(high)


def group_of(site: Site, per: Per) -> str:
    """What a site shares its share with: itself, its residual branch, or its block."""
    match per:
        case "matrix":
            return site.name
        case "sublayer":
            return site.branch or site.name
        case "block":
            return str(site.block)


def cost_of(sites: Sequence[Site], denominator: Denominator) -> float:
    """What sites that go together save: weights, seconds (latency), or numbers in the cache per token; 1 for "none".

    Seconds and the cache are those of branches; other sites have none.
    """
    match denominator:
        case "none":
            return 1.0
        case "weights":
            return float(sum(site.size for site in sites))
        case "latency":
            return math.fsum(site.seconds for site in sites if isinstance(site, SublayerSite))
        case "cache":
            return float(sum(site.cached for site in sites if isinstance(site, SublayerSite)))


def per_unit(importance: float, cost: float) -> float:
    """Importance per unit of cost; where it is not above 0 the largest comes first: per unit the smallest would."""
    return importance / cost if importance > 0 else -cost


def pooled(preference: Callable[[Site, float], float], per: Per, sites: Sequence[Site]) -> Callable[[Site, float], float]:
    """The same preference, with one share for each group: the mean of its members', weighted by size."""
    groups: dict[str, list[Site]] = {}
    for site in sorted(sites, key=lambda site: site.name):  # in one order, so that rounding does not depend on theirs
        groups.setdefault(group_of(site, per), []).append(site)

    def shared(site: Site, level: float) -> float:
        members = groups[group_of(site, per)]
        return sum(preference(other, level) * other.size for other in members) / sum(other.size for other in members)

    return shared


def probed(solver: Solver, sparsity: float, site: Site, weight: Tensor, stats: InputStats, loss: Any = None) -> float:
    """The logarithm of the relative output error that a solver leaves at one sparsity; of channels, whole ones go."""
    shape = columns_of(site) if isinstance(site, ChannelSite) else Unstructured("matrix")
    problem = LayerProblem(weight, stats, shape, sparsity, site.name, loss)
    return math.log(max(problem.error(solver.solve(problem).weight) or 0.0, 1e-12))


def lean(importance: Mapping[str, float], spread: float, per: Per, sites: Sequence[Site], budget: Budget,
         granularity: Granularity) -> Allocation:
    """Shares that fall with importance on a line, from `spread` above the middle for the least to `spread` below it.

    A branch's or block's importance is the mean over its sites, weighted by size (Yin et al. 2024, section 3, for blocks).
    """
    groups = {site.name: group_of(site, per) for site in sites}
    sums: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for site in sorted(sites, key=lambda site: site.name):  # in one order, so that rounding does not depend on theirs
        group = groups[site.name]
        sums[group] = sums.get(group, 0.0) + importance[site.name] * site.size
        sizes[group] = sizes.get(group, 0) + site.size
    means = {group: total / sizes[group] for group, total in sums.items()}
    least, most = min(means.values()), max(means.values())
    width = most - least

    def preference(site: Site, level: float) -> float:
        rank = (means[groups[site.name]] - least) / width if width > 1e-12 * max(abs(least), abs(most)) else 0.5
        return level + spread * (1 - 2 * rank)

    return fit(preference, sites, budget, granularity)
