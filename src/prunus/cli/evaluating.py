"""Several numbers of one or two models: texts, tasks and prompts, measured in turn, the dense model first."""

from typing import TYPE_CHECKING, Any

import typer

from . import options as o
from .progress import Screen, compared

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..calibration.corpus import Text
    from ..evaluation import Measurement

__all__ = ["check_same_words", "flagged", "several", "stored"]

_ANSWER = 128  # tokens of an answer that is shown, at most


def several(sources: list[str], said: dict[str, Any], loading: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Measure every model by the flags of `prunus evaluate`, and print a table or JSON."""
    from ..comparing.averages import with_mean
    from ..evaluation import Context
    from ..generations import generate, prompts_of
    from ..loading import load

    metrics, texts = _metrics(said)
    dense: dict[str, Any] | None = {} if len(sources) == 2 else None
    if "corpora" in said:
        check_same_words(sources, loading["trust_remote_code"])
    prompts = prompts_of(tuple(f"@{name}" for name in o.words(said.get("prompts", ""))))
    found: list[tuple[Measurement, ...]] = []
    answers: list[tuple[str, ...]] = []
    with Screen(quiet or as_json) as screen:
        for source in sources:
            screen.say(f"Measuring {source}")
            loaded = load(source, **loading)
            context, numbers = Context(loaded.tokenizer, watch=screen.working, dense=dense, stored=loaded.stored), []
            for metric in metrics:
                numbers += metric.measure(loaded.model, context)
            found.append(with_mean(numbers))
            answers.append(generate(loaded.model, loaded.tokenizer, prompts, _ANSWER))
            del loaded
    lines, remarks = flagged(sources, texts, found)
    if as_json:
        _as_json(sources, found, prompts, answers, lines)
        return
    for line in lines:
        typer.secho(line, bold=True)
    if found[0]:
        _table(sources, found)
    for prompt, *given in zip(prompts, *answers, strict=bool(answers[0])):
        typer.echo(f"\n{prompt}")
        for source, answer in zip(sources, given, strict=True):
            typer.echo(f"  {source}: {' '.join(answer.split()) or '(nothing)'}")
    for line in remarks:
        typer.echo(f"Note: {line}")


def flagged(sources: "Sequence[str]", texts: "Sequence[Text]",
            found: "Sequence[Sequence[Measurement]]") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Why the numbers of the last model may not be what they look like: they are none, its folder says that it has seen of these texts,
    or it is better than the first one, the dense model, where there is one; and remarks."""
    from ..comparing.made import seen_of
    from ..comparing.verdicts import ruined
    from ..grams import Looked
    from ..guards import flags

    seen, remarks = seen_of(sources[-1], texts, Looked())
    bad = [line for source, numbers in zip(sources, found, strict=True) for line in ruined(source, numbers)]
    dense, model = found if len(found) == 2 else ((), ())
    return (*bad, *flags(dense, model, seen)), remarks


def check_same_words(sources: "Sequence[str]", trust: bool) -> None:
    """Refuse to compare losses per token of models that read other tokens. Raises ComparisonError and LoadError."""
    from ..calibration.sample import words_of
    from ..errors import ComparisonError
    from ..loading import tokenizer_of

    tokenizers = [tokenizer_of(source, trust) for source in sources]
    words = [words_of(tokenizer) for tokenizer in tokenizers if tokenizer is not None]
    if len(set(words)) > 1:
        raise ComparisonError(f"{' and '.join(sources)}: their tokenizers differ ({'; '.join(words)}), so that losses per token are of "
                              "other tokens. Measure each without --dense, or compare them on --tasks.")


def _metrics(said: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What is measured, and on which texts and questions, which are looked for before a model is loaded."""
    from ..calibration.reported import beginning_of
    from ..evaluation.fidelity import Fidelity
    from ..evaluation.tasks import Tasks
    from ..recipe import build
    from ..sandbox import Execute

    metrics: list[Any] = []
    texts: list[Any] = []
    if "corpora" in said:
        text = Fidelity(o.words(said["corpora"]), **{name: said[name] for name in ("split", "length", "tokens") if name in said})
        texts += [beginning_of(one, text.tokens) for one in text.texts()]
        metrics.append(text)
    if "tasks" in said:
        settings = {name: said[name] for name in ("limit", "shots", "batch") if name in said}
        tasks = Tasks(o.words(said["tasks"]), metrics=tuple(said.get("metric", ())),
                      execute=build(Execute, said.get("execute", "off"), "--execute"), **settings)
        texts += tasks.questions()
        metrics.append(tasks)
    return metrics, texts


def _as_json(sources: list[str], found: "Sequence[Sequence[Measurement]]", prompts: tuple[str, ...], answers: list[tuple[str, ...]],
             flags: tuple[str, ...]) -> None:
    """A row for every number and every answer; flags stand in every number of the model that they are of."""
    import json
    from dataclasses import asdict

    from ..report.json import standard

    rows = [{"model": source, **asdict(item), "interval": item.interval, "flags": flags if source == sources[-1] else ()}
            for source, items in zip(sources, found, strict=True) for item in items]
    rows += [{"model": source, "prompt": prompt, "answer": answer} for source, given in zip(sources, answers, strict=True)
             for prompt, answer in zip(prompts, given, strict=bool(given))]
    typer.echo(json.dumps(standard(rows), indent=2))


def _table(sources: list[str], found: "Sequence[Sequence[Measurement]]") -> None:
    """The dense model's numbers first where there are two models, then the other's, and how far apart they are."""
    from ..comparing.page import aligned
    from ..comparison import bare
    from ..evaluation import protocols_of

    if len(sources) == 1:
        head = ["", "value", "95 %", "better"]
        rows = [[item.label, f"{item.value:.4f}", "[{:.4f}, {:.4f}]".format(*item.interval), item.better] for item in found[0]]
        brackets = "In brackets: 95 % interval over windows or examples"
    else:
        head = ["", "dense", "model", "ratio, or of shares difference", "better"]
        rows = [[before.label, *compared(before, after), before.better] for before, after in zip(*found, strict=True)]
        brackets = "Dense: {}; model: {}. In brackets: 95 %, of the same windows or examples in pairs".format(*sources)
    for line in aligned([head, *rows]):
        typer.echo(line)
    typer.echo(f"{brackets}.")
    for protocol in protocols_of((item.label, bare(item.protocol)) for item in found[0]):
        typer.echo(f"Protocol: {protocol}")
    for line in stored((source, items[0].protocol) for source, items in zip(sources, found, strict=True)):
        typer.echo(line)


def stored(models: "Iterable[tuple[str, str]]") -> list[str]:
    """How the weights of models were stored, by one protocol of each; nothing of plain ones."""
    from ..comparison import stored_of

    return [f"Weights of {source}: stored as {how}." for source, protocol in models if (how := stored_of(protocol))]
