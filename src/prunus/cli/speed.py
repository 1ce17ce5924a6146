"""prunus speed MODEL MODEL: read and write in turn."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o

if TYPE_CHECKING:
    from ..speed import Timing

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
        from ..speed import in_llama_cpp, memory_in_llama_cpp

        found, runtime = in_llama_cpp(files, prompt, answer, repetitions, threads), "llama.cpp"
        memory = [memory_in_llama_cpp(file, prompt, answer, threads) for file in files]
    else:
        import torch

        from ..calibration.placement import Placement
        from ..loading import load
        from ..speed import in_pytorch, memory_in_pytorch

        Placement(device)
        torch.set_num_threads(threads)
        loaded = [load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code).model for model in models]
        found, runtime = in_pytorch(loaded, prompt, answer, repetitions), f"PyTorch, {loaded[0].dtype}"
        memory = [memory_in_pytorch(model, prompt, answer, threads, dtype, device, trust_remote_code) for model in models]
    protocol = f"{runtime}, {threads} thread{'s' * (threads > 1)}, {prompt} tokens read, {answer} written, one sequence"
    _print(models, found, memory, protocol, json)


def _print(models: list[str], rows: "list[Timing]", memory: list[int], protocol: str, as_json: bool) -> None:
    import json
    import statistics
    from dataclasses import asdict

    from ..speed import ratio

    if as_json:
        typer.echo(json.dumps([{"model": model, **asdict(item), "memory": peak, "protocol": protocol}
                               for model, item, peak in zip(models, rows, memory, strict=True)], indent=2))
        return
    base = rows[0]
    for model, item, peak in zip(models, rows, memory, strict=True):
        typer.echo(f"{model}: weights {item.bytes / 2**20:.1f} MiB ({item.bytes / base.bytes:.2f}), "
                   f"memory {peak / 2**20:.0f} MiB ({peak / memory[0]:.2f})")
        for word, unit, scale, mine, theirs in (("read", "tokens/s", 1, item.prefill, base.prefill),
                                                ("first token", "ms", 1000, item.first, base.first),
                                                ("write", "tokens/s", 1, item.decode, base.decode)):
            middle, low, high = ratio(theirs, mine)
            typer.echo(f"  {word:11} {scale * statistics.median(mine):9.1f} {unit:8}   {middle:.2f} [{low:.2f}, {high:.2f}]")
    typer.echo("Medians over rounds; in brackets the least and the most of the rounds' ratios to the first model. More tokens/s are "
               "better, and fewer ms.\nMemory: the peak of a process of its own, runtime included.\n"
               f"Protocol: {protocol}.")
