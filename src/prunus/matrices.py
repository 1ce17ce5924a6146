"""The matrices that a stage solves, and what is asked of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from torch import Tensor, nn

from .allocation import columns_of
from .errors import RecipeError
from .granularity import NM, Granularity, Unstructured, check_shape
from .recipe import Stage
from .search.plan import Rankings
from .sites import Anatomy, ChannelSite, LinearSite, Site, SublayerSite
from .solvers import Solver

__all__ = ["Task", "changed", "matrices_of", "movable", "resolved", "select"]


@dataclass(frozen=True)
class Task:
    """What is asked of one matrix, and on behalf of which site."""

    site: Site
    granularity: Granularity
    ranking: Tensor | None = None  # of its columns, where a search has learned one


def matrices_of(anatomy: Anatomy, sites: tuple[Site, ...], stage: Stage, rankings: Rankings | None = None) -> dict[LinearSite, Task]:
    """The matrices to solve: linear sites themselves, channel sites on their consumer by whole groups of columns."""
    granularity = resolved(stage.granularity, stage.solver)
    matrices = {site.name: site for site in anatomy.sites("linear") if isinstance(site, LinearSite)}
    plan: dict[LinearSite, Task] = {}
    for site in sites:
        match site:
            case LinearSite():
                plan[site] = Task(site, granularity)
            case ChannelSite():
                plan[matrices[site.consumer]] = Task(site, columns_of(site), (rankings or {}).get(site.name))
    return plan


def movable(anatomy: Anatomy, sites: Iterable[Site], granularity: Granularity) -> dict[LinearSite, ChannelSite]:
    """The matrices of a stage whose inputs are to take another order first, and the channels that they read; none where none is asked for.

    Others read the residual stream, which one order for all would have to serve, or share groups of m between parts.
    """
    if not isinstance(granularity, NM) or not granularity.permute:
        return {}
    read = {site.consumer: site for site in anatomy.sites("channel")
            if isinstance(site, ChannelSite) and site.parts[1] % granularity.m == 0}
    return {site: read[site.name] for site in sites if isinstance(site, LinearSite) and site.name in read}


def changed(model: nn.Module, plan: Mapping[LinearSite, Task], matrices: Iterable[LinearSite]) -> dict[str, Tensor]:
    """The parameters that solving some of a plan's matrices changes."""
    names = {matrix.name for matrix in matrices}
    for matrix in matrices:
        site = plan[matrix].site
        if isinstance(site, ChannelSite):
            names |= {producer.name for producer in site.producers}
    return {f"{name}.{key}": value for name in sorted(names) for key, value in model.get_submodule(name).named_parameters()}


def resolved(granularity: Granularity, solver: Solver) -> Granularity:
    """The scope that the solver's paper uses, where the recipe leaves it open."""
    if granularity == Unstructured("native"):
        return Unstructured("row" if solver.scope == "row" else "matrix")
    return granularity


def select(anatomy: Anatomy, stage: Stage, index: int) -> tuple[Site, ...]:
    """The sites of a stage, each checked against its granularity."""
    where = f"recipe.stage[{index}]"
    if not anatomy.sites(*stage.sites):
        raise RecipeError(f"{where}.sites: no {stage.sites[0]} site is described for this model's family. Prune linear sites.")
    sites = tuple(site for site in anatomy.sites(*stage.sites)
                  if not any(fnmatch(site.name, pattern) for pattern in stage.skip))
    if not sites:
        raise RecipeError(f"{where}.skip = {list(stage.skip)}: leaves no {stage.sites[0]} site to prune.")
    for site in sites:
        if isinstance(site, LinearSite):
            check_shape(site.shape, stage.granularity, site.name)
    if isinstance(stage.granularity, NM) and stage.granularity.permute and not movable(anatomy, sites, stage.granularity):
        raise RecipeError(f"{where}.granularity {stage.granularity}: none of the {len(sites)} chosen sites, {sites[0].name} the first, can "
                          "have its inputs in another order: the residual stream gives them, or groups of m would reach into two "
                          "heads. Choose the last matrix of the MLP or attention too, or leave permute out.")
    if "cache" in stage.denominators and not any(isinstance(site, SublayerSite) and site.cached for site in sites):
        raise RecipeError(f"{where}: denominator = 'cache', but no site keeps keys and values. Use weights, latency or none.")
    if stage.sites == ("sublayer",):
        _check_room(anatomy, sites, stage, where)
    if stage.multiple > 1:  # of groups of heads, of which there are few, any number may stay
        sites = tuple(_in_multiples(site, stage.multiple, where) if isinstance(site, ChannelSite) and site.width == 1 else site
                      for site in sites)
    return sites


def _in_multiples(site: ChannelSite, multiple: int, where: str) -> ChannelSite:
    """The same site, of whose channels a multiple is to stay. Raises RecipeError where that is all of them or none."""
    if multiple >= site.count:
        raise RecipeError(f"{where}.multiple = {multiple}: {site.name} has {site.count} channels, of which all or none could stay. "
                          "Use a smaller multiple.")
    return replace(site, multiple=multiple)


def _check_room(anatomy: Anatomy, sites: tuple[Site, ...], stage: Stage, where: str) -> None:
    """Refuse a budget that no choice can meet with an attention left. Raises RecipeError."""
    attentions = [site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite) and site.cache]
    if not attentions or not set(attentions) <= set(sites):  # one that is skipped stays
        return
    most = 1 - min(site.size for site in attentions) / sum(site.size for site in sites)
    if stage.budget.sparsity > most + 1e-9:
        raise RecipeError(f"{where}.budget: sparsity {stage.budget.sparsity:g} leaves no attention, and one must stay: at most "
                          f"{most:.3f} of the weights of these branches may go.")
