"""prunus search MODEL --space NAME --out RUN, prunus front RUN, and prunus extract RUN --pick LIMITS --out FOLDER."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .running import check_head, opened

if TYPE_CHECKING:
    from ..front import Front

__all__ = ["extract", "front", "search_front"]

Run = Annotated[Path, typer.Argument(help="The folder of a `prunus search --space`.", show_default=False)]
_Pick = Annotated[list[str] | None, typer.Option(
    help="A limit that the point must keep to, such as params<=0.5; may be repeated. Of those that do, the best by the first objective "
         "without a limit. [default: none, and the point where the front bends most]")]


def search_front(source: str, settings: dict[str, Any], out: Path, place: dict[str, Any], dtype: str, overwrite: bool, resume: bool,
                 trust: bool, quiet: bool, as_json: bool) -> None:
    """The search of `prunus search` where it is asked for a space of architectures."""
    from dataclasses import replace

    from ..calibration.placement import Placement
    from ..checkpoint import check_apart, check_target
    from ..errors import ExportError
    from ..files import giving_way, whole_folder, working_alone
    from ..front import FrontSearch
    from ..recipe import build
    from ..seen import Seen
    from ..supernets import SuperNet
    from .progress import Screen

    plan: FrontSearch = build(FrontSearch, settings, "search")
    check_apart(out, source)
    check_target(out, overwrite or resume, 0)
    with working_alone(out):
        begun = any(path.exists() for path in _work_in(out))
        if out.is_dir() and any(out.iterdir()) and not begun and (not overwrite or (out / "config.json").exists()):
            raise ExportError(f"{out}: holds {'a model' if overwrite else 'no search to resume'}. Choose another folder"
                              f"{'' if overwrite else ' or say --overwrite'}.")
        trained = SuperNet.of(source)
        if trained:
            trained.check(plan.space, plan.task)
            if plan.order == "none":  # its own order of channels stays; this says what they matter where they compete
                plan = replace(plan, order=trained.training.get("order", "none"))
        read = plan.task.read() if plan.task else None
        Seen.of(source).check(read, plan.text)
        with Screen(quiet) as screen:
            loaded = opened(source, Placement(**place), dtype, trust, screen, read.labels if read else (), plan.seed)
            if read and not plan.training:
                check_head(loaded, read)
            from ..frontier import find_front

            with giving_way(_left_in(out) if overwrite and not resume else [], lambda: _has_begun(out)):
                found = find_front(loaded.model, loaded.tokenizer, plan, orders=trained.orders if trained else None, folder=out,
                                   source=source, watch=screen.exploring, training=screen.training, tell=screen.working)
            with whole_folder(out.absolute()) as draft:
                _write(found, draft)
            screen.front(found, out)
    if as_json:
        typer.echo(found.to_json())
    if found.interrupted:
        raise typer.Exit(130)


def _work_in(out: Path) -> list[Path]:
    """What a search goes on from: its trials, then the folders of what they are made of."""
    from ..alone import FOLDER
    from ..front import FITS, LEVELS

    return [out / name for name in ("trials.jsonl", LEVELS, FITS, FOLDER)]


def _left_in(out: Path) -> list[Path]:
    """What a search may leave, but for its pictures."""
    from ..front import FILE

    return [*_work_in(out), out / "latency.json", out / FILE]


def _has_begun(out: Path) -> bool:
    """Whether a search has left something that it can go on from."""
    trials, *folders = _work_in(out)
    tried = trials.is_file() and trials.read_bytes().count(b"\n") > 1  # the first line is no trial
    return tried or any(path.is_dir() for path in folders)


def _write(found: "Front", folder: Path) -> None:
    from ..front import FILE
    from ..front_figures import front_figures

    (folder / FILE).write_text(found.to_json(), encoding="utf-8")
    for name, content in front_figures(found).items():
        (folder / name).write_bytes(content)


def front(run: Run, quiet: o.Quiet = False) -> None:
    """Draw the front that a search found (front.html, front.png and front.csv in its folder), and list its points."""
    from ..files import whole_folder
    from ..front import Front
    from .progress import Screen

    found = Front.load(run)
    with whole_folder(run.absolute()) as draft:
        _write(found, draft)
    with Screen(quiet) as screen:
        screen.front(found, run)


def extract(
    run: Run,
    out: o.Out,
    pick: _Pick = None,
    model: Annotated[str, typer.Option(help="The model that was searched, if it is not where it was.")] = "",
    recovery: Annotated[str, typer.Option(
        help="Repair what is kept, by calibration text: patch, or none; settings after commas. For families that add a branch's output to "
             "the stream as it is.")] = "none",
    calibration: o.CalibrationText = None,
    samples: o.Samples = None,
    length: o.Length = None,
    dtype: o.Dtype = "auto",
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Make one point of a front a model of its own: smaller matrices, fewer blocks, and nothing of what it does not have."""
    import json
    from dataclasses import asdict

    from ..alone import FOLDER, fill, weights_file
    from ..calibration.placement import Placement
    from ..checkpoint import check_apart, check_no_search, check_target, folder, save_model
    from ..errors import RecipeError
    from ..front import Front
    from ..search.spaces.mixed import Mixed
    from ..traits import model_bytes
    from .progress import Screen

    found = Front.load(run)
    point = found.pick(pick or ())
    check_apart(out, model or found.source)
    check_no_search(out)
    check_target(out, overwrite, 0)
    if found.plan.training and recovery != "none":
        raise RecipeError(f"--recovery {recovery}: the points of this front have weights of their own training. Leave it out.")
    repaired = _repaired(recovery, {"corpus": calibration, "samples": samples, "length": length})
    if repaired and isinstance(found.plan.space, Mixed):
        raise RecipeError("--recovery does not go with space mixed: it would change weights that are 0.")
    labels = found.plan.task.read().labels if found.plan.task else ()
    with Screen(quiet) as screen:
        loaded = opened(model or found.source, Placement(), dtype, trust_remote_code, screen, labels, found.plan.seed)
        from ..frontier import check_searched, fits_of, genome_of, repair, thin_of

        check_searched(loaded.model, found, model or found.source)
        thin, before = thin_of(loaded.model, found.plan.space, run), model_bytes(loaded.model)
        fits = None if repaired else fits_of(loaded.model, found.plan, run)  # a fit would undo the repair
        genome = genome_of(loaded.model, found.plan.space, found.orders, thin, fits)
        if repaired:
            for line in repair(loaded.model, loaded.tokenizer, genome.units, genome.kept(point.candidate), *repaired, watch=screen.working):
                screen.warn(line)
        genome.extract(loaded.model, point.candidate)
        if found.plan.training:
            fill(loaded.model, weights_file(run / FOLDER, genome.kept(point.candidate), point.resource))
        with folder(out.absolute()) as draft:
            save_model(loaded.model, loaded.tokenizer, draft)
            data = {"run": str(run), "pick": pick or [], "objectives": found.plan.objectives, "recovery": recovery, **asdict(point)}
            (draft / "point.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        screen.point(found, point)
        screen.say(f"Saved to {out}: {model_bytes(loaded.model) / before:.1%} of the weights' bytes, embeddings and head included.")


def _repaired(recovery: str, text: dict[str, Any]) -> tuple[Any, Any] | None:
    """The recovery, and what it reads. Raises RecipeError."""
    from ..calibration.sample import Calibration
    from ..errors import RecipeError
    from ..recipe import build, plugin

    said = o.said_of(text)
    if recovery == "none":
        if said:
            raise RecipeError(f"--{'calibration' if 'corpus' in said else next(iter(said))} says nothing without --recovery.")
        return None
    return plugin("recovery", o.named(recovery, "--recovery"), "--recovery"), build(Calibration, said, "calibration")
