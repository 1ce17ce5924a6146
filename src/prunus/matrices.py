"""The matrices that a stage solves, and what is asked of each."""

from dataclasses import dataclass, replace
from fnmatch import fnmatch

from torch import Tensor

from .allocation import columns_of
from .errors import RecipeError
from .granularity import Granularity, Unstructured, check_shape
from .recipe import Stage
from .search.plan import Rankings
from .sites import Anatomy, ChannelSite, LinearSite, Site, SublayerSite
from .solvers import Solver

__all__ = ["Task", "matrices_of", "resolved", "select"]


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


def resolved(granularity: Granularity, solver: Solver) -> Granularity:
    """The scope that the solver's paper uses, where the recipe leaves it open."""
    if granularity == Unstructured("native"):
        return Unstructured("row" if solver.scope == "row" else "matrix")
    return granularity


def select(anatomy: Anatomy, stage: Stage, index: int) -> tuple[Site, ...]:
    """The sites of a stage, each checked against its granularity."""
    where = f"recipe.stage[{index}]"
    sites = tuple(site for site in anatomy.sites(*stage.sites)
                  if not any(fnmatch(site.name, pattern) for pattern in stage.skip))
    if not sites:
        raise RecipeError(f"{where}.skip = {list(stage.skip)}: leaves no {stage.sites[0]} site to prune.")
    for site in sites:
        if isinstance(site, LinearSite):
            check_shape(site.shape, stage.granularity, site.name)
    if "cache" in stage.denominators and not any(isinstance(site, SublayerSite) and site.cached for site in sites):
        raise RecipeError(f"{where}: denominator = 'cache', but no site keeps keys and values. Use weights, latency or none.")
    if stage.multiple > 1:  # of groups of heads, of which there are few, any number may stay
        sites = tuple(replace(site, multiple=stage.multiple) if isinstance(site, ChannelSite) and site.width == 1 else site
                      for site in sites)
    return sites
