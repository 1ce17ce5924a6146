"""The `prunus` command: its subcommands, and what happens when one fails."""

import sys
from typing import Annotated

import typer

from ..errors import PrunusError
from .allocate import allocate, search
from .analyse import analyse
from .compare import compare
from .demo import demo
from .describe import describe
from .evaluate import evaluate
from .export import export
from .finetune import finetune
from .front import extract, front
from .list import list_names
from .prune import prune
from .quantise import quantise
from .recipe import recipe
from .speed import speed
from .study import study

__all__ = ["app", "run"]

_INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="prunus", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Make language models smaller and faster by pruning, and prove what that cost.",
)
app.command("prune")(prune)
app.command("allocate")(allocate)
app.command("search")(search)
app.command("finetune")(finetune)
app.command("front")(front)
app.command("extract")(extract)
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("study")(study)
app.command("analyse")(analyse)
app.command("quantise")(quantise)
app.command("export")(export)
app.command("speed")(speed)
app.command("describe")(describe)
app.command("list")(list_names)
app.command("recipe")(recipe)
app.command("demo")(demo)


def _version(asked: bool) -> bool:
    if asked:
        from .. import __version__

        typer.echo(f"prunus {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options before the subcommand."""


def run() -> None:
    """Run the command line: 2 for what the person can cure, 130 when interrupted."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except PrunusError as error:
        typer.echo(f"prunus: {error}", err=True)
        sys.exit(2)
    except typer.TyperException as error:  # words that are missing, too many or of the wrong kind
        typer.echo(f"prunus: {' '.join(error.format_message().split())} See prunus --help.", err=True)
        sys.exit(2)
    if code == _INTERRUPTED:
        typer.echo("prunus: interrupted.", err=True)
    sys.exit(code)
