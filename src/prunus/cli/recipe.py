"""prunus recipe: the recipe that a set of flags means."""

import typer

from . import options as o

__all__ = ["recipe"]


def recipe(
    file: o.RecipeFile = None,
    sites: o.Sites = None,
    sparsity: o.Sparsity = None,
    granularity: o.Granularity = None,
    solver: o.Solver = None,
    allocation: o.Allocation = None,
    search: o.Search = None,
    evaluations: o.Evaluations = None,
    search_text: o.SearchText = None,
    skip: o.Skip = None,
    calibration: o.CalibrationText = None,
    samples: o.Samples = None,
    length: o.Length = None,
    evaluate: o.EvaluationText = None,
    evaluate_length: o.EvaluationLength = None,
    seed: o.Seed = None,
) -> None:
    """Print the recipe that a set of flags means, in full, as TOML."""
    flags = {"sites": sites, "sparsity": sparsity, "granularity": granularity, "solver": solver, "allocation": allocation,
             "search": search, "evaluations": evaluations, "search_text": search_text,
             "skip": skip, "calibration": calibration, "samples": samples, "length": length, "evaluate": evaluate,
             "evaluate_length": evaluate_length, "seed": seed}
    typer.echo(o.recipe_of(file, flags).to_toml(), nl=False)
