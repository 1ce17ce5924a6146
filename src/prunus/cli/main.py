"""The `prunus` command: its subcommands, and what happens when one fails."""

import sys
from typing import Annotated

import typer

from ..errors import PrunusError
from .demo import demo
from .describe import describe
from .evaluate import evaluate
from .list import list_names
from .prune import prune
from .recipe import recipe

__all__ = ["app", "run"]

app = typer.Typer(
    name="prunus", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Make language models smaller and faster by pruning, and prove what that cost.",
)
app.command("prune")(prune)
app.command("evaluate")(evaluate)
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
        app()
    except PrunusError as error:
        typer.echo(f"prunus: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("prunus: interrupted.", err=True)
        sys.exit(130)
