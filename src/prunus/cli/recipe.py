"""prunus recipe: the recipe that a set of flags means."""

import typer

from . import options as o

__all__ = ["recipe"]


def recipe(
    file: o.RecipeFile = None,
    sites: o.Sites = None,
    sparsity: o.Sparsity = None,
    multiple: o.Multiple = None,
    granularity: o.Granularity = None,
    effort: o.Effort = None,
    solver: o.Solver = None,
    allocation: o.Allocation = None,
    search: o.Search = None,
    evaluations: o.Evaluations = None,
    search_text: o.SearchText = None,
    objective: o.Objective = None,
    repaired: o.Repaired = None,
    recovery: o.Recovery = None,
    target: o.Target = None,
    skip: o.Skip = None,
    calibration: o.CalibrationText = None,
    samples: o.Samples = None,
    written: o.Written = None,
    length: o.Length = None,
    evaluate: o.EvaluationText = None,
    evaluate_length: o.EvaluationLength = None,
    metrics: o.Metrics = None,
    seed: o.Seed = None,
) -> None:
    """Print the recipe that a set of flags means, in full, as TOML."""
    typer.echo(o.recipe_of(file, o.given(locals())).to_toml(), nl=False)
