"""prunus list FOLDER."""

from typing import Annotated

import typer

__all__ = ["list_names"]

_FOLDERS = {"solvers": "solvers", "criteria": "criteria", "allocators": "allocation", "strategies": "search.strategies",
            "spaces": "search.spaces", "searchers": "search.searchers", "trainings": "supernet", "recoveries": "recovery",
            "quantisers": "quantisers", "metrics": "evaluation", "families": "anatomy", "formats": "export", "reports": "report"}


def list_names(what: Annotated[str, typer.Argument(help=f"One of: {', '.join(_FOLDERS)}.")]) -> None:
    """List what can be named in a recipe, with one line on each."""
    import ast
    from pathlib import Path

    from ..errors import UnknownName
    from ..lookup import names

    if what not in _FOLDERS:
        raise UnknownName("list", what, list(_FOLDERS))
    folder = _FOLDERS[what]
    known = names(folder)
    home = Path(__file__).parent.parent.joinpath(*folder.split("."))
    for name in known:
        line = (ast.get_docstring(ast.parse((home / f"{name}.py").read_text(encoding="utf-8"))) or "").splitlines()[0]
        typer.echo(f"{name:{max(map(len, known))}}  {line}")
