"""prunus prune MODEL --out FOLDER."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o

__all__ = ["carry_out", "prune"]


def prune(
    model: o.Model,
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist or be empty.")],
    recipe: o.RecipeFile = None,
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
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    activations: Annotated[str, typer.Option(help="Where activations wait between blocks: memory, device or disk.")] = "memory",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON; progress is left out.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Prune a model, measure what that cost, and save a checkpoint that transformers loads."""
    flags = {"sites": sites, "sparsity": sparsity, "granularity": granularity, "solver": solver, "allocation": allocation,
             "search": search, "evaluations": evaluations, "search_text": search_text,
             "skip": skip, "calibration": calibration, "samples": samples, "length": length, "evaluate": evaluate,
             "evaluate_length": evaluate_length, "seed": seed}
    plan = o.recipe_of(recipe, flags)
    place = {"device": device, "activations": activations}
    carry_out(model, plan, out, place, dtype, overwrite, resume, trust_remote_code, quiet=quiet or json, as_json=json)


def carry_out(source: str, recipe: Any, out: Path, place: dict[str, Any], dtype: str, overwrite: bool, resume: bool,
              trust: bool, quiet: bool, as_json: bool) -> None:
    """Load, prune, save and print; shared with `prunus demo`."""
    from ..calibration.placement import Placement
    from ..errors import CalibrationError, ExportError
    from ..export.huggingface import check_target, model_bytes, save
    from ..journal import Journal
    from ..lookup import find
    from .progress import Screen

    placement = Placement(**place)
    check_target(out, overwrite, 0)
    journal = Journal(out.absolute().with_name(f"{out.absolute().name}.partial"))
    if journal.folder.exists() and not (resume or overwrite):
        raise ExportError(f"{journal.folder}: holds finished work of an interrupted run. Say --resume to go on, or "
                          "--overwrite to begin again.")
    if overwrite and not resume:
        journal.discard()
    with Screen(quiet) as screen:
        screen.say(f"Loading {source}")
        from ..loading import load
        from ..pipeline import prune as run

        loaded = load(source, dtype=dtype, trust_remote_code=trust)
        if place["device"] != "cpu" and placement.fits(loaded.model):
            loaded.model.to(place["device"])
        recipe = _suited(recipe, loaded.model, screen)
        check_target(out, overwrite, 2 * model_bytes(loaded.model))  # finished blocks are kept on the way
        try:
            pruned = run(loaded.model, recipe, tokenizer=loaded.tokenizer, placement=placement, watch=screen.watch,
                         resume=journal.folder, source=source)
            screen.say(f"Saving {out}")
            save(pruned, out, overwrite=overwrite)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                screen.warn(f"Interrupted: nothing was written to {out}.")
            if isinstance(error, CalibrationError):
                journal.discard()  # it would fail again at the same place
            if journal.folder.exists():
                screen.warn(f"Finished blocks are kept in {journal.folder}: run the same command with --resume to go on.")
            raise
        journal.discard()
        screen.summary(pruned.report, out)
    if as_json:
        typer.echo(find("report", "json")().render(pruned.report), nl=False)


def _suited(recipe: Any, model: Any, screen: Any) -> Any:
    """Perplexity and generations are left out, with a word about it, where a model does not predict the next token."""
    from dataclasses import replace

    if model.can_generate() or not (recipe.metrics or recipe.prompts):
        return recipe
    screen.say("This model does not predict the next token: no perplexity and no answers are measured.")
    return replace(recipe, metrics=(), prompts=())
