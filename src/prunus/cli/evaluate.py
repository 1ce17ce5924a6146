"""prunus evaluate MODEL --corpus NAME, --corpora …, --tasks …, --prompts …, or --task NAME for a model with a head."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .running import check_head

if TYPE_CHECKING:
    from ..calibration.corpus import Text
    from ..calibration.tasks import Labelled
    from ..evaluation import Measurement
    from ..loading import Loaded
    from ..scores import Score

__all__ = ["evaluate"]

_OF_TASKS = ("limit", "shots", "batch", "execute", "metric")


def evaluate(
    model: o.Model,
    corpus: Annotated[str | None, typer.Option(help="builtin, c4, wikitext2, ptb, or a .txt or .jsonl file. [default: builtin]")] = None,
    corpora: Annotated[str | None, typer.Option(
        help="Several texts, with commas: perplexity and calibration error on each; with --dense divergence from the dense model and "
             "agreement with it.")] = None,
    tasks: Annotated[str | None, typer.Option(
        help="Questions to a model that writes, as lm-evaluation-harness asks them, with commas: piqa,arc_easy,mmlu, or folders.")] = None,
    limit: Annotated[int | None, typer.Option(help="With --tasks: examples of each, from the first on. [default: all]")] = None,
    shots: Annotated[int | None, typer.Option(
        help="With --tasks: examples with their answers before each question. [default: as the task says, mostly 0]")] = None,
    metric: Annotated[list[str] | None, typer.Option(
        help="With --tasks: acc, acc_norm, exact_match, …; may be repeated. [default: acc_norm, acc, or the task's first]")] = None,
    batch: Annotated[int | None, typer.Option(help="With --tasks: texts that are written together. [default: 8]")] = None,
    execute: Annotated[str | None, typer.Option(
        help="With --tasks humaneval: run the code that the model writes: off, sandbox (confined), or here. [default: off]")] = None,
    prompts: Annotated[str | None, typer.Option(
        help="Answers side by side, not judged, to prompts of a corpus: mt_bench, alpaca, or mt_bench:4:0 for 4 drawn by seed 0.")] = None,
    task: Annotated[str | None, typer.Option(
        help="A labelled corpus for a model with a classification head, as finetune takes it (not --tasks): glue_sst2, or a .jsonl file; "
             "settings after commas.")] = None,
    split: Annotated[str | None, typer.Option(
        help="train, validation or test. [default: test; of a corpus without one validation]")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per window. [default: 512]")] = None,
    tokens: Annotated[int | None, typer.Option(help="How many tokens of a text are read; 0 for the whole text. [default: 20480]")] = None,
    dense: Annotated[str | None, typer.Option(help="The dense model, to be measured beside on the same windows or examples.")] = None,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON; of tasks with every example.")] = False,
    quiet: o.Quiet = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Measure perplexity, predictions, downstream tasks, or the score of a model with a head, each with its protocol and its uncertainty,
    beside the dense model when it is named."""
    from ..calibration.placement import Placement
    from ..loading import load

    Placement(device)
    said = _checked({name: value for name, value in locals().items() if value is not None and value != []})
    loading: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    if {"corpora", "tasks", "prompts"} & said.keys():
        from .evaluating import several

        several([*([dense] if dense else []), model], said, loading, json, quiet)
        return
    measure, labels, texts = _on_task(task, split) if task else _on_text(
        {name: said[name] for name in ("corpus", "length", "tokens", "split") if name in said})
    if dense and not task:
        from .evaluating import check_same_words

        check_same_words([dense, model], trust_remote_code)
    rows = []
    for source in [model, *([dense] if dense else [])]:
        loaded = load(source, labels=labels, **loading)
        rows.append((source, measure(loaded)))
        del loaded
    _print(rows, texts, json)


def _checked(said: dict[str, Any]) -> dict[str, Any]:
    """Flags that go together. Raises RecipeError."""
    from ..errors import RecipeError

    def flag(name: str) -> str:
        return f"--{name.replace('_', '-')}"

    new = [name for name in ("corpora", "tasks", "prompts") if name in said]
    single = [name for name in ("corpus", "task") if name in said]
    if new and single:
        raise RecipeError(f"--{single[0]} does not go with --{new[0]}.{' --task is for models with a head.' if single == ['task'] else ''}")
    if wrong := [name for name in _OF_TASKS if name in said and "tasks" not in said]:
        raise RecipeError(f"{flag(wrong[0])} says nothing without --tasks.")
    if wrong := [name for name in ("length", "tokens", "split") if name in said and new and "corpora" not in said]:
        raise RecipeError(f"{flag(wrong[0])} does not go with --{new[0]}, which says itself what is read.")
    if "task" in said and (wrong := [name for name in ("corpus", "length", "tokens") if name in said]):
        raise RecipeError(f"{flag(wrong[0])} does not go with --task, which says itself what is read.")
    return said


def _on_text(settings: dict[str, Any]) -> tuple[Any, tuple[str, ...], "list[Text]"]:
    """What measures perplexity, no labels, and the text, once it is known to be there."""
    from ..evaluation import Context
    from ..evaluation.perplexity import Perplexity

    metric = Perplexity(**settings)
    text = metric.beginning()

    def measure(loaded: "Loaded") -> "Measurement":
        return metric.measure(loaded.model, Context(loaded.tokenizer, stored=loaded.stored))

    return measure, (), [text]


def _on_task(task: str, split: str | None) -> tuple[Any, tuple[str, ...], "list[Text]"]:
    """What scores a model on a split of a task, and the labels of the task; no text is compared. Raises RecipeError."""
    from ..calibration.tasks import Split, Task, encoded
    from ..predictions import score
    from ..recipe import build

    part: Split = build(Split, split or "test", "--split")
    read: Labelled = build(Task, o.of_corpus(task, "--task"), "task").read()

    def measure(loaded: "Loaded") -> "Score":
        check_head(loaded, read)
        return score(loaded.model, encoded(read, part, loaded.model, loaded.tokenizer, loaded.stored))

    return measure, read.labels, []


def _print(rows: list[tuple[str, Any]], texts: "list[Text]", as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from ..comparison import bare
    from ..report.json import standard
    from ..scores import Score
    from .evaluating import flagged, stored

    on_task = isinstance(rows[0][1], Score)
    flags, remarks = flagged([source for source, _ in rows[::-1]], texts, [[item] for _, item in rows[::-1]]) if not on_task else ((), ())
    if as_json:
        typer.echo(json.dumps(standard([{"model": source, **asdict(item), "interval": item.interval, "flags": () if place else flags}
                                        for place, (source, item) in enumerate(rows)]), indent=2))
        return
    for line in flags:
        typer.secho(line, bold=True)
    for source, item in rows:
        low, high = item.interval
        typer.echo(f"{source}: {f'{item.metric} ' if on_task else ''}{item.value:.4f} [{low:.4f}, {high:.4f}]")
    if len(rows) == 2:
        (_, pruned), (_, dense) = rows
        value, (low, high) = pruned.above(dense) if on_task else pruned.over(dense)
        typer.echo(f"{'difference' if on_task else 'ratio'}: {value:.4f} [{low:.4f}, {high:.4f}] (paired)")
    for line in remarks:
        typer.echo(f"Note: {line}")
    typer.echo(f"In brackets: 95 % bootstrap interval over {'examples' if on_task else 'windows'}.")
    for line in (f"Protocol: {bare(rows[0][1].protocol)}.", *stored((source, item.protocol) for source, item in rows)):
        typer.echo(line)
