"""prunus evaluate MODEL --corpus NAME, or --task NAME."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .running import check_head

if TYPE_CHECKING:
    from ..calibration.tasks import Labelled
    from ..evaluation import Measurement
    from ..loading import Loaded
    from ..scores import Score

__all__ = ["evaluate"]


def evaluate(
    model: o.Model,
    corpus: Annotated[str | None, typer.Option(help="builtin, c4, wikitext2, ptb, or a .txt or .jsonl file. [default: builtin]")] = None,
    task: Annotated[str | None, typer.Option(
        help="A labelled corpus instead, for a model with a head: glue_sst2, or a .jsonl file; settings after commas.")] = None,
    split: Annotated[str | None, typer.Option(
        help="train, validation or test. [default: test; of a corpus without one validation]")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per window. [default: 512]")] = None,
    tokens: Annotated[int | None, typer.Option(help="How many tokens are read; 0 for the whole text. [default: 20480]")] = None,
    dense: Annotated[str | None, typer.Option(help="The dense model, to be measured beside on the same windows or examples.")] = None,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Measure perplexity, or the score of a task, with its protocol and its uncertainty, beside the dense model when it is named."""
    from ..calibration.placement import Placement
    from ..errors import RecipeError
    from ..loading import load

    Placement(device)
    settings = {"corpus": corpus, "length": length, "tokens": tokens}
    said = {name: value for name, value in settings.items() if value is not None}
    if task and said:
        raise RecipeError(f"--{next(iter(said))} does not go with --task, which says itself what is read.")
    measure, labels = _on_task(task, split) if task else _on_text({**said, "split": split})
    rows = []
    for source in [model, *([dense] if dense else [])]:
        loaded = load(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code, labels=labels)
        rows.append((source, measure(loaded)))
        del loaded
    _print(rows, json)


def _on_text(settings: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """What measures perplexity, once it is known that the text is there."""
    from ..evaluation import Context
    from ..evaluation.perplexity import Perplexity

    metric = Perplexity(**settings)
    metric.text()

    def measure(loaded: "Loaded") -> "Measurement":
        return metric.measure(loaded.model, Context(loaded.tokenizer))

    return measure, ()


def _on_task(task: str, split: str | None) -> tuple[Any, tuple[str, ...]]:
    """What scores a model on a split of a task, and the labels of the task. Raises RecipeError."""
    from ..calibration.tasks import Split, Task, encoded
    from ..predictions import score
    from ..recipe import build

    part: Split = build(Split, split or "test", "--split")
    read: Labelled = build(Task, o.of_corpus(task, "--task"), "task").read()

    def measure(loaded: "Loaded") -> "Score":
        check_head(loaded, read)
        return score(loaded.model, encoded(read, part, loaded.model, loaded.tokenizer))

    return measure, read.labels


def _print(rows: list[tuple[str, Any]], as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from ..report.json import standard
    from ..scores import Score

    if as_json:
        typer.echo(json.dumps(standard([{"model": source, **asdict(item), "interval": item.interval} for source, item in rows]), indent=2))
        return
    on_task = isinstance(rows[0][1], Score)
    for source, item in rows:
        low, high = item.interval
        typer.echo(f"{source}: {f'{item.metric} ' if on_task else ''}{item.value:.4f} [{low:.4f}, {high:.4f}]")
    if len(rows) == 2:
        (_, pruned), (_, dense) = rows
        value, (low, high) = pruned.above(dense) if on_task else pruned.over(dense)
        typer.echo(f"{'difference' if on_task else 'ratio'}: {value:.4f} [{low:.4f}, {high:.4f}] (paired)")
    typer.echo(f"In brackets: 95 % bootstrap interval over {'examples' if on_task else 'windows'}.\nProtocol: {rows[0][1].protocol}.")
