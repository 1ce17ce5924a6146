"""prunus quantise MODEL --out FOLDER."""

from typing import Annotated, Any

import typer

from . import options as o
from .running import opened

__all__ = ["quantise"]


def quantise(
    model: o.Model,
    out: o.Out,
    bits: Annotated[int, typer.Option(help="Of a weight: 4 or 8.")] = 4,
    group: Annotated[int, typer.Option(help="Neighbouring inputs that share a scale; 0: a whole row.")] = 64,
    method: Annotated[str, typer.Option(
        help="gptq, which makes up for rounding errors by calibration, or rtn, round to nearest; settings after commas: "
             "gptq,damping=0.1.")] = "gptq",
    calibration: o.CalibrationText = None,
    samples: o.Samples = None,
    length: o.Length = None,
    seed: o.Seed = None,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Round the weights of a model's blocks, pruned or dense, to a few bits, and save them packed: zeros stay exactly zero."""
    from ..calibration.placement import Placement
    from ..calibration.sample import Calibration
    from ..checkpoint import check_apart
    from ..compressed import check_compressed, save_compressed
    from ..errors import RecipeError
    from ..quantisation import Grid
    from ..quantising import Plan
    from ..quantising import quantise as run
    from ..recipe import build, plugin
    from .progress import Screen

    made = plugin("quantisers", o.named(method, "--method"), "--method")
    text = {"corpus": calibration, "samples": samples, "length": length}
    said = o.said_of(text)
    if said and made.needs == "nothing":
        raise RecipeError(f"--calibration, --samples and --length say nothing with --method {method}, which reads no text.")
    plan = Plan(made, Grid(bits, group), build(Calibration, said, "calibration"), seed or 0)
    check_apart(out, model)
    check_compressed(out.absolute(), overwrite)
    placement = Placement(device)
    with Screen(quiet) as screen:
        loaded = opened(model, placement, dtype, trust_remote_code, screen)
        if loaded.quantised:
            raise RecipeError(f"model '{model}': its weights are quantised already ({loaded.stored}). Name the model that it was made "
                              "from.")
        found = run(loaded.model, plan, tokenizer=loaded.tokenizer, placement=placement, watch=screen.working)
        facts = save_compressed(found, out.absolute(), model, overwrite)
        for line in _summary(model, found, facts):
            screen.say(line)
        screen.say(f"Saved to {out} (transformers loads it where compressed-tensors is installed).")


def _summary(source: str, found: Any, facts: dict[str, Any]) -> list[str]:
    """What it cost and what it saves."""
    from ..loading import weight_bytes

    records, sizes = found.records, {record.site: found.matrices[record.site].codes.numel() for record in found.records}
    total = sum(sizes.values())
    before, after = (1 - sum(getattr(record, part) * sizes[record.site] for record in records) / total for part in ("kept", "left"))
    errors = [record.error for record in records if record.error is not None]
    files = weight_bytes(source)
    beside = f", where {source} has {files / 2**20:.1f} MiB" if files else ""
    error = f" Relative output error {sum(errors) / len(errors):.4f} in the mean over matrices." if errors else ""
    return [f"{facts['weights']}, in {found.seconds:.0f} s. Zeros: {before:.2%} of the block weights before, {after:.2%} now.{error}",
            f"Weight files: {sum(facts['files'].values()) / 2**20:.1f} MiB{beside}."]
