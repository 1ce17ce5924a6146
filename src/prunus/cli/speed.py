"""prunus speed MODEL MODEL: read and write in turn."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o

if TYPE_CHECKING:
    from ..speed import Speed

__all__ = ["speed"]


def speed(
    models: Annotated[list[str], typer.Argument(
        help="The model to compare with, then others: folders, hub ids or package:NAME for PyTorch; .gguf files for llama.cpp.",
        show_default=False)],
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 256,
    answer: Annotated[int, typer.Option(help="Tokens of the answer.")] = 32,
    repetitions: Annotated[int, typer.Option(help="Rounds in which every model has its turn, after one that warms up.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of the CPU.")] = 1,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Measure how fast models read a prompt and write an answer, all in turn."""
    from ..errors import RecipeError

    if min(prompt, answer, repetitions, threads) < 1:
        raise RecipeError("speed: --prompt, --answer, --repetitions and --threads must be at least 1.")
    files = [Path(model) for model in models if model.endswith(".gguf")]
    if files and len(files) < len(models):
        raise RecipeError("speed: .gguf files are run by llama.cpp, other models by PyTorch. Compare one kind at a time.")
    if files:
        from ..speed import in_llama_cpp

        found, runtime = in_llama_cpp(files, prompt, answer, repetitions, threads), "llama.cpp"
    else:
        import torch

        from ..calibration.placement import Placement
        from ..loading import load
        from ..speed import in_pytorch

        Placement(device)
        torch.set_num_threads(threads)
        loaded = [load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code).model for model in models]
        found, runtime = in_pytorch(loaded, prompt, answer, repetitions), f"PyTorch, {loaded[0].dtype}"
    _print(models, found, f"{runtime}, {threads} threads, {prompt} tokens read, {answer} written, one sequence", json)


def _print(models: list[str], rows: "list[Speed]", protocol: str, as_json: bool) -> None:
    import json
    import statistics
    from dataclasses import asdict

    from ..speed import ratio

    if as_json:
        typer.echo(json.dumps([{"model": model, **asdict(item), "protocol": protocol} for model, item in zip(models, rows, strict=True)],
                              indent=2))
        return
    for model, item in zip(models, rows, strict=True):
        typer.echo(f"{model}: {item.bytes / 2**20:.1f} MiB ({item.bytes / rows[0].bytes:.2f})")
        for word, mine, base in (("read", item.prefill, rows[0].prefill), ("write", item.decode, rows[0].decode)):
            middle, low, high = ratio(base, mine)
            typer.echo(f"  {word:5} {statistics.median(mine):9.1f} tokens/s   {middle:.2f} [{low:.2f}, {high:.2f}]")
    typer.echo(f"Medians over rounds; in brackets the least and the most of the rounds' ratios to the first model.\nProtocol: {protocol}.")
