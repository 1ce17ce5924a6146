"""prunus allocate MODEL --out FOLDER, and prunus search MODEL --out FOLDER."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .front import search_front
from .running import journal_of, kept, opened

__all__ = ["allocate", "search"]

_Search = Annotated[str | None, typer.Option(
    help="The strategy: reinforce, evolution, local, dynamic, cmaes, ppo, ddpg, sac, random; of sublayers "
         "progressive, regression or bernoulli; settings after commas. [default: reinforce; of sublayers progressive]")]
_JSON = Annotated[bool, typer.Option("--json", help="Print the allocation or the front, and what the search did, as JSON.")]


def allocate(
    model: o.Model,
    out: o.Out,
    recipe: o.RecipeFile = None,
    sites: o.Sites = None,
    sparsity: o.Sparsity = None,
    multiple: o.Multiple = None,
    granularity: o.Granularity = None,
    allocation: o.Allocation = None,
    skip: o.Skip = None,
    calibration: o.CalibrationText = None,
    samples: o.Samples = None,
    length: o.Length = None,
    seed: o.Seed = None,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    json: _JSON = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Decide how much each site gives, and prune nothing."""
    from ..errors import RecipeError

    plan = o.recipe_of(recipe, {**o.given(locals()), **({} if recipe else {"evaluate": "none", "search": "none"})})
    if any(stage.search for stage in plan.stage):
        raise RecipeError("recipe.stage.search: prunus allocate makes no search. Use prunus search.")
    _decide(model, plan, out, {"device": device}, dtype, overwrite, False, trust_remote_code, quiet or json, json)


def search(
    model: o.Model,
    out: o.Out,
    recipe: o.RecipeFile = None,
    sites: o.Sites = None,
    sparsity: o.Sparsity = None,
    multiple: o.Multiple = None,
    granularity: o.Granularity = None,
    solver: o.Solver = None,
    allocation: o.Allocation = None,
    search: _Search = None,
    space: o.Space = None,
    objectives: o.Objectives = None,
    searcher: o.Searcher = None,
    train: o.Train = None,
    task: o.Task = None,
    order: o.Order = None,
    refit: o.Refit = None,
    batch: o.LatencyBatch = None,
    baselines: o.Baselines = None,
    evaluations: o.Evaluations = None,
    search_text: o.SearchText = None,
    objective: o.Objective = None,
    repaired: o.Repaired = None,
    skip: o.Skip = None,
    calibration: o.CalibrationText = None,
    samples: o.Samples = None,
    length: o.Length = None,
    seed: o.Seed = None,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    quiet: o.Quiet = False,
    json: _JSON = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Search how much each site gives (by policy gradient, unless --search says otherwise), and prune nothing; or, with --space, search
    sub-networks by several objectives at once, and give all that no other beats (a Pareto front)."""
    from ..errors import RecipeError

    settings = o.front_settings(locals())
    if settings is not None:
        place = str(Path(model).resolve()) if Path(model).exists() else model  # a point may be extracted from elsewhere
        search_front(place, settings, out, {"device": device}, dtype, overwrite, resume, trust_remote_code, quiet or json, json)
        return
    flags = o.given(locals())
    if recipe is None:
        flags |= {"evaluate": "none", "search": search or ("progressive" if sites == "sublayer" else "reinforce")}
    plan = o.recipe_of(recipe, flags)
    if not all(stage.search for stage in plan.stage):
        raise RecipeError("recipe.stage.search: is missing, and prunus search needs it. Use prunus allocate for an allocator alone.")
    _decide(model, plan, out, {"device": device}, dtype, overwrite, resume, trust_remote_code, quiet or json, json)


def _decide(source: str, recipe: Any, out: Path, place: dict[str, Any], dtype: str, overwrite: bool, resume: bool, trust: bool,
            quiet: bool, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from ..calibration.placement import Placement
    from ..checkpoint import DRAWN
    from ..export.huggingface import write_shares
    from ..files import whole_folder
    from ..report.json import standard
    from .progress import Screen

    placement = Placement(**place)
    journal = journal_of(source, out, overwrite, resume)
    with Screen(quiet) as screen, kept(journal, out, screen):
        loaded = opened(source, placement, dtype, trust, screen)
        from ..pipeline import allocate as run

        found = run(loaded.model, recipe, tokenizer=loaded.tokenizer, placement=placement, watch=screen.watch,
                    resume=journal.folder, source=source)
        data = standard({"allocation": dict(found.allocation), "search": asdict(found.search) if found.search else None,
                         "seconds": dict(found.seconds), "environment": dict(found.environment)})
        with whole_folder(out.absolute(), DRAWN) as draft:
            write_shares(draft, found.recipe, (found.allocation,), (found.search,) if found.search else ())
            (draft / "decision.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        screen.shares(found, out)
    if as_json:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
