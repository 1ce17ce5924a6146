"""prunus study FILE.toml."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from ..studying.cells import Cell
    from ..studying.gathered import Gathered
    from ..studying.plan import Study
    from ..studying.run import State
    from .progress import Screen

__all__ = ["study"]

_FAILED = 1  # the exit code where cells failed


def study(
    file: Annotated[Path, typer.Argument(help="A study (TOML): models, recipes, seeds and metrics.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The folder of the results. [default: as the file says]")] = None,
    missing: Annotated[bool, typer.Option(
        "--list", "--dry-run", help="Check the study, show which cells are there and which are missing, with an estimate, and run none.",
    )] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the pruned models, in models/ of the folder.")] = False,
    overwrite: Annotated[bool, typer.Option(
        "--overwrite", help="Run cells again whose files are of another study, or damaged; others are kept.")] = False,
    quiet: o.Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Run every recipe of a study on every model with every seed, and report means, deviations and what the tests allow to say.

    Every cell is kept in the folder: the same command again runs only what is missing or has failed, and goes on within a cell that was
    interrupted. The exit code is 1 where cells failed.
    """
    from ..studying.content import write
    from ..studying.gathered import gathered
    from ..studying.plan import read_study
    from ..studying.run import carry_out, planned, state_of
    from ..studying.work import Apart
    from .progress import Screen

    asked = _asked(read_study(file), out, keep)
    plan = planned(asked, Path(asked.out), overwrite=overwrite, trust=trust_remote_code)
    state = state_of(plan)
    if missing:
        _list(state)
        return
    with Screen(quiet or json) as screen:
        try:
            with Apart() as worker:
                state = carry_out(plan, worker, _told(screen))
        except KeyboardInterrupt:
            state = state_of(plan)
            if state.results:
                write(gathered(state, file), plan.store.folder, file.read_text(encoding="utf-8"))
            screen.warn(f"Interrupted: {len(state.cells) - len(state.missing)} of {len(state.cells)} cells are kept in {asked.out}, and "
                        "the report of these. The same command goes on from there.")
            raise
        found = gathered(state, file)
        files = write(found, plan.store.folder, file.read_text(encoding="utf-8"))
    if json:
        typer.echo((plan.store.folder / "study.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        _print(found, files)
    for name, line in found.failed.items():
        typer.echo(f"prunus: {name}: {line}", err=True)
    if found.failed:
        raise typer.Exit(_FAILED)


def _asked(study: "Study", out: Path | None, keep: bool) -> "Study":
    """With what flags say. Raises RecipeError."""
    from dataclasses import replace

    from ..errors import RecipeError

    if out is None and not study.out:
        raise RecipeError("study.out: no folder: name one in the file, or with --out.")
    return replace(study, out=str(out) if out is not None else study.out, keep=keep or study.keep)


def _told(screen: "Screen") -> Any:
    """What is shown while cells run."""
    from ..studying.run import Told
    from .progress import clock

    def begins(cell: "Cell", state: "State") -> None:
        estimate = "" if state.left is None else f" About {clock(state.left)} left in all."
        screen.say(f"Cell {state.cells.index(cell) + 1} of {len(state.cells)}: {cell.name}.{estimate}")

    def ends(cell: "Cell", result: Mapping[str, Any]) -> None:
        if "failed" in result:
            screen.warn(f"{cell.name}: failed: {result['failed']['line']}")
            return
        first = next(iter(result["found"]["measured"]), None)
        value = f", {first['protocol'].partition(',')[0]} {first['value']:.4g}" if first else ""
        screen.say(f"{cell.name}: done in {clock(result['took']['whole'])}{value}.")

    return Told(begins, ends, screen.watch)


def _list(state: "State") -> None:
    """Every cell, whether it is there, and what the others may take."""
    from .progress import clock

    for cell in state.cells:
        seconds = state.seconds(cell)
        word = "there" if state.has(cell) else "failed" if cell in state.failed else "missing"
        estimate = f"  about {clock(seconds)}" if word != "there" and seconds is not None else ""
        typer.echo(f"{word:8}{cell.name}{estimate}")
    left = state.left
    told = ("no estimate before a cell of this kind is there" if left is None else f"about {clock(left)} left") if state.missing else ""
    typer.echo(f"{len(state.cells) - len(state.missing)} of {len(state.cells)} cells are there{f'; {told}' if told else ''}.")


def _print(found: "Gathered", files: tuple[Path, ...]) -> None:
    """The tables in short, what the tests allow to say, and where the rest is."""
    from ..studying.content import lead_of, printed

    for flag in found.flags:
        typer.secho(flag, bold=True)
    for line in (*printed(found), *lead_of(found)):
        typer.echo(line)
    typer.echo(f"Written: {', '.join(map(str, files))}")
