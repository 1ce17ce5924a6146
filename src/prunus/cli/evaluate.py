"""prunus evaluate MODEL --corpus NAME."""

from typing import Annotated, Any

import typer

from . import options as o

__all__ = ["evaluate"]


def evaluate(
    model: o.Model,
    corpus: Annotated[str, typer.Option(help="builtin, c4, wikitext2, ptb, or a .txt or .jsonl file.")] = "builtin",
    split: Annotated[str | None, typer.Option(help="train, validation or test. [default: test, or validation]")] = None,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    tokens: Annotated[int, typer.Option(help="How many tokens are read; 0 for the whole text.")] = 20_480,
    dense: Annotated[str | None, typer.Option(help="The dense model, to be measured beside on the same windows.")] = None,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Measure perplexity with its protocol and its uncertainty, beside the dense model when it is named."""
    from ..calibration.placement import Placement
    from ..evaluation import Context
    from ..evaluation.perplexity import Perplexity
    from ..loading import load

    Placement(device)
    metric = Perplexity(corpus, split, length, tokens)
    metric.text()
    rows = []
    for source in [model, *([dense] if dense else [])]:
        loaded = load(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        rows.append((source, metric.measure(loaded.model, Context(loaded.tokenizer))))
        del loaded
    _print(rows, json)


def _print(rows: list[tuple[str, Any]], as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from ..report.json import standard

    if as_json:
        typer.echo(json.dumps(standard([{"model": source, **asdict(item)} for source, item in rows]), indent=2))
        return
    for source, item in rows:
        low, high = item.interval
        typer.echo(f"{source}: {item.value:.4f} [{low:.4f}, {high:.4f}]")
    if len(rows) == 2:
        (_, pruned), (_, dense) = rows
        ratio, (low, high) = pruned.over(dense)
        typer.echo(f"ratio: {ratio:.4f} [{low:.4f}, {high:.4f}] (paired)")
    typer.echo(f"In brackets: 95 % bootstrap interval over windows.\nProtocol: {rows[0][1].protocol}.")
