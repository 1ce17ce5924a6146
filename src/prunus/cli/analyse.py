"""prunus analyse MODEL --out FOLDER."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o

__all__ = ["analyse"]


def analyse(
    model: o.Model,
    out: Annotated[Path, typer.Option(help="The folder for tables and pictures; it must not exist or be empty.")],
    calibration: Annotated[list[str], typer.Option(
        help="Text for the statistics of the stream, as for `prune`; named again, another text for comparison.")] = ["builtin"],  # noqa: B006
    samples: Annotated[int, typer.Option(help="Calibration sequences.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 256,
    text: Annotated[list[str], typer.Option(
        help="What impacts are measured on; self is text that the model writes; settings after commas: c4,samples=16; named again, another "
             "text for comparison.")] = ["self,samples=8"],  # noqa: B006
    share: Annotated[float, typer.Option(help="Of the block weights that goes, where choices of branches are compared.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Chooses the sequences.")] = 0,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Show what every attention and MLP does, and what it costs to be without it."""
    from ..calibration.placement import Placement
    from ..calibration.sample import Calibration
    from ..checkpoint import check_apart, check_target
    from ..files import whole_folder
    from ..pipeline import Progress
    from ..recipe import build
    from .progress import Screen
    from .running import opened

    placement = Placement(device)
    check_apart(out, model)
    check_target(out, overwrite, 0)
    looked = [build(Calibration, {"corpus": (words := o.named(item, "--text")).pop("name"), "samples": 8, "length": length, **words},
                    "--text") for item in text]
    with Screen(quiet) as screen:
        loaded = opened(model, placement, dtype, trust_remote_code, screen)
        from ..analysis import analyse as run
        from ..findings import PICTURES, files_of

        found = run(loaded.model, loaded.tokenizer, [Calibration(item, samples=samples, length=length) for item in calibration], looked,
                    share=share, placement=placement, seed=seed,
                    watch=lambda done, total: screen.watch(Progress("looking at branches", done, total)))
        with whole_folder(out.absolute(), PICTURES) as draft:
            for name, content in files_of(found).items():
                (draft / name).write_bytes(content)
        least = sorted(found.branches, key=lambda record: record.impact_per_weight)[:5]
        screen.say("Least impact per weight: " + ", ".join(f"{record.site} ({record.impact:.4f} nats per token)" for record in least))
        screen.say(f"Saved to {out}; begin with {out / 'README.md'}.")
