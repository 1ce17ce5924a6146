"""Whether the parts of a stage go together: what one asks must be what another can do."""

from typing import Any

from .allocation.uniform import Uniform
from .budget import Budget
from .calibration.target import Target
from .errors import RecipeError
from .granularity import NM, Columns, Unstructured
from .lookup import name_of
from .recovery import block_by_block, reselects
from .search.plan import Search
from .sites import Kind

__all__ = ["check_stage"]


def check_stage(stage: Any) -> None:
    """Of a Stage. Raises RecipeError that says what does not go with what, and what to do."""
    _check_kind(stage, stage.sites[0])
    if stage.search and stage.search.per_channel:
        _check_masks(stage, stage.search)
    if stage.sites == ("sublayer",):
        _check_branches(stage)
    else:
        _check_solved(stage)


def _check_kind(stage: Any, kind: Kind) -> None:
    """Whether what the stage says is said of its kind of site."""
    if kind != "linear" and stage.granularity != Unstructured():
        raise RecipeError(f"{kind} sites give whole {kind}s; granularity {stage.granularity} does not apply.")
    kinds = getattr(stage.allocation, "kinds", ("linear", "channel"))
    if kind not in kinds:
        raise RecipeError(f"allocation '{name_of(type(stage.allocation))}' shares out {' and '.join(kinds)} sites, not {kind} "
                          f"sites.{' Use influence or contiguous.' if kind == 'sublayer' else ''}")
    if reselects(block_by_block(stage.recovery)) and (kind != "linear" or not isinstance(stage.granularity, Unstructured | NM)):
        raise RecipeError(f"recovery '{name_of(type(stage.recovery))}': reselect chooses again which single weights stay, and "
                          f"{stage.granularity if kind == 'linear' else kind} takes them in groups. Leave it out.")
    if stage.multiple < 1 or (stage.multiple > 1 and kind != "channel"):
        raise RecipeError(f"multiple = {stage.multiple}: expected at least 1, and more only where channels go.")


def _check_solved(stage: Any) -> None:
    """Whether the solver, and the search, can do what is asked of matrices."""
    if stage.search and stage.search.repaired:
        raise RecipeError(f"search.repaired = {stage.search.repaired}: only where sublayers go is there something to repair. Leave it out.")
    if isinstance(stage.granularity, NM):
        _check_groups(stage, stage.granularity, stage.budget)
    target = stage.target
    if stage.solver.needs == "nothing" and not target.asymmetry and (target.fisher or not target.true_sequential):
        raise RecipeError(f"target: solver {type(stage.solver).__name__} looks at no inputs, so neither which tokens weigh more nor which "
                          "matrices are pruned before says anything. Leave it out.")
    if found := stage.denominators & {"latency", "cache"}:
        raise RecipeError(f"denominator = '{min(found)}': known of whole attentions and MLPs alone. Use weights or none.")
    if stage.search and stage.solver.needs != "gram" and getattr(stage.search.strategy, "needs_errors", False):
        raise RecipeError(f"strategy '{name_of(type(stage.search.strategy))}' needs the error of every site at every level, which solver "
                          f"{type(stage.solver).__name__} does not measure. Choose one that needs a Gram matrix, such as sparsegpt.")
    for part, needs in stage.loss_needs.items():
        if needs.channels and stage.sites == ("linear",):
            plugin = getattr(stage, part)
            raise RecipeError(f"{part}: '{name_of(type(getattr(plugin, 'criterion', plugin)))}' looks at the loss channel by channel, and "
                              "single matrices have no channels. Use channel sites, or another criterion.")
    shape: type = Columns if stage.sites == ("channel",) else type(stage.granularity)
    if shape not in stage.solver.supports:
        able = ", ".join(kind.__name__.lower() for kind in stage.solver.supports)
        raise RecipeError(f"solver {type(stage.solver).__name__} cannot do {shape.__name__.lower()}; it can do {able}.")


def _check_masks(stage: Any, search: Search) -> None:
    """Whether single channels may be chosen, and the solver leaves the choice to a search."""
    strategy, (kind,) = f"strategy '{name_of(type(search.strategy))}'", stage.sites
    if kind != "channel":
        raise RecipeError(f"{strategy} decides which channels stay; {kind} sites have none. "
                          f"Use {'bernoulli' if kind == 'sublayer' else 'reinforce'}.")
    if search.levels:
        raise RecipeError(f"search.levels: {strategy} knows none, as a channel is there or not. Leave it out.")
    if not getattr(stage.solver, "ranks", False):
        raise RecipeError(f"{strategy} decides which channels stay, and solver {type(stage.solver).__name__} decides that itself. "
                          "Use refit or mask.")


def _check_branches(stage: Any) -> None:
    """Whether the search can do what is asked of branches."""
    search = stage.search
    if stage.target != Target():
        raise RecipeError("target: says what matrices are fitted to, and where sublayers go none is solved. Leave it out.")
    if search and search.levels:
        raise RecipeError("search.levels: sublayers are there or not; leave it out.")
    if search and getattr(search.strategy, "needs_errors", False):
        raise RecipeError(f"strategy '{name_of(type(search.strategy))}' needs the error of every site at every level, which sublayers have "
                          "none of. Use progressive.")
    if search and search.repaired and not hasattr(stage.recovery, "rehearse"):
        raise RecipeError(f"search.repaired = {search.repaired}: the stage has no recovery that can repair candidates. Add recovery = "
                          "\"patch\", or leave it out.")


def _check_groups(stage: Any, granularity: NM, budget: Budget) -> None:
    """Whether something else than n:m is to say how much goes."""
    kept = granularity.n / granularity.m
    if abs(budget.limit - kept) > 1e-9:
        raise RecipeError(f"granularity {granularity} keeps {kept:g} of the weights, but the budget keeps "
                          f"{budget.limit:g} (sparsity {budget.sparsity:g}). n:m fixes the sparsity at {1 - kept:g}.")
    if stage.search is not None:
        raise RecipeError(f"granularity {granularity} fixes the sparsity of every site: there is nothing to search.")
    if not isinstance(stage.allocation, Uniform):
        raise RecipeError(f"granularity {granularity} fixes the sparsity of every site: allocation "
                          f"'{name_of(type(stage.allocation))}' decides nothing. Leave it out.")
