"""prunus export MODEL --format NAME --out PLACE."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o

__all__ = ["export"]


def export(
    model: o.Model,
    out: Annotated[Path, typer.Option(help="The file (gguf) or the folder to write.")],
    format: Annotated[str, typer.Option(
        help="gguf, deci, padded, sparse or huggingface; settings after commas: gguf,dtype=Q8_0 (or Q5_0, Q4_0, F16, F32).")],
    dtype: o.Dtype = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    quiet: o.Quiet = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Write a model, pruned or dense, as files that another program opens."""
    from ..calibration.placement import Placement
    from ..checkpoint import check_apart
    from ..recipe import plugin
    from .progress import Screen
    from .running import opened

    made = plugin("export", {**o.named(format, "--format"), "overwrite": overwrite}, "--format")
    place = out.absolute()
    check_apart(place, model)
    with Screen(quiet) as screen:
        loaded = opened(model, Placement(), dtype, trust_remote_code, screen)
        made.check(loaded, place)
        screen.say(f"Saving {out}")
        made.save(loaded, place)
        size = sum(file.stat().st_size for file in ([place] if place.is_file() else place.iterdir()))
        screen.say(f"Saved {out}: {size / 2**20:.1f} MiB.")
