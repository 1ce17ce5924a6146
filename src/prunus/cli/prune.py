"""prunus prune MODEL --out FOLDER."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .running import journal_of, kept, opened

__all__ = ["carry_out", "prune"]


def prune(
    model: o.Model,
    out: o.Out,
    recipe: o.RecipeFile = None,
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
    known: Annotated[Path | None, typer.Option(
        help="A JSON file with known values of the dense model and their protocols: an earlier report.json, or what prunus evaluate --json "
             "prints. What is measured is held against them.")] = None,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    activations: Annotated[str, typer.Option(help="Where activations wait between blocks: memory, device or disk.")] = "memory",
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    quiet: o.Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON; progress is left out.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Prune a model, measure what that cost, and save a checkpoint that transformers loads."""
    plan = o.recipe_of(recipe, o.given(locals()))
    place = {"device": device, "activations": activations}
    carry_out(model, plan, out, place, dtype, overwrite, resume, trust_remote_code, quiet=quiet or json, as_json=json, known=known)


def carry_out(source: str, recipe: Any, out: Path, place: dict[str, Any], dtype: str, overwrite: bool, resume: bool,
              trust: bool, quiet: bool, as_json: bool, known: Path | None = None) -> None:
    """Load, prune, save and print; shared with `prunus demo`."""
    from ..calibration.placement import Placement
    from ..checkpoint import check_target
    from ..export.huggingface import save
    from ..known import read_known
    from ..traits import model_bytes
    from .progress import Screen

    placement = Placement(**place)
    values = read_known(known) if known else ()
    journal = journal_of(source, out, overwrite, resume)
    with Screen(quiet) as screen, kept(journal, out, screen):
        loaded = opened(source, placement, dtype, trust, screen)
        from ..pipeline import prune as run

        recipe = _suited(recipe, loaded.model, screen)
        check_target(out, overwrite, 2 * model_bytes(loaded.model))  # finished blocks are kept on the way
        pruned = run(loaded.model, recipe, tokenizer=loaded.tokenizer, placement=placement, watch=screen.watch,
                     resume=journal.folder, source=source, known=values)
        screen.say(f"Saving {out}")
        save(pruned, out, overwrite=overwrite)
        screen.summary(pruned.report, out)
    if as_json:
        typer.echo((out / "report.json").read_text(encoding="utf-8"), nl=False)


def _suited(recipe: Any, model: Any, screen: Any) -> Any:
    """Perplexity and generations are left out, with a word about it, where a model does not predict the next token."""
    from dataclasses import replace

    from ..traits import predicts_next

    if predicts_next(model) or not (recipe.metrics or recipe.prompts):
        return recipe
    screen.say("This model does not predict the next token: no perplexity and no answers are measured.")
    return replace(recipe, metrics=(), prompts=())
