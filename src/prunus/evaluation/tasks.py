"""Downstream tasks, with the prompts and the metrics of lm-evaluation-harness."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..calibration.blocks import evaluating
from ..calibration.corpus import QUESTIONS, Text
from ..calibration.sample import check_tokenizer, how_read
from ..errors import MissingExtra, RecipeError, nearest
from ..sandbox import Execute
from ..traits import predicts_next
from ..uncertainty import statistic_draws
from . import Context, Example, Measurement

__all__ = ["Tasks"]


_FIRST = ("acc_norm", "acc")  # of a task's metrics, the one that is reported where none is named
_DRAWS = 200  # of a number that is computed from all examples together


@dataclass(frozen=True)
class Tasks:
    """Questions put to the model as lm-evaluation-harness puts them, and its answers scored as the harness scores them.

    Documents come from the folder that PRUNUS_DATA names, where it has them, else from the hub. A name that stands for several tasks
    (mmlu, blimp) gives one number where the harness gives one, else one for each. A folder with task.toml (or task.yaml: the harness's
    keys) and JSONL files beside it is a task too.
    """

    names: tuple[str, ...] = ()  # of tasks: piqa, arc_easy, mmlu, gsm8k, multi30k-en-de, …, or folders
    limit: int | None = None  # examples of each task, from the first on; None: all
    shots: int | None = None  # examples with their answers before the question; None: as many as the task says, mostly 0
    seed: int = 1234  # draws these examples; the harness's own default
    batch: int = 8  # texts that are written together; in other dtypes than float32, that are read together too
    metrics: tuple[str, ...] = ()  # acc, acc_norm, exact_match, …; none: acc_norm where the task has it, else acc, else its first
    execute: Execute = "off"  # run code that the model writes (humaneval): never, confined, or on this machine

    unit: ClassVar[str] = "share"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def __post_init__(self) -> None:
        if (self.limit is not None and self.limit < 1) or (self.shots or 0) < 0 or self.batch < 1:
            raise RecipeError(f"tasks: limit = {self.limit}, shots = {self.shots}, batch = {self.batch}: expected at least 1 example, 0 "
                              "shots and a batch of 1.")
        if len(set(self.names)) < len(self.names):
            raise RecipeError(f"tasks: names = {', '.join(self.names)}: expected every task once.")

    def opened(self) -> list[Any]:
        """The tasks with their documents. Raises RecipeError and CorpusError before any model is asked."""
        if not self.names:
            raise RecipeError("tasks: names = []: expected at least one, such as piqa.")
        if find_spec("lm_eval") is None:
            raise MissingExtra("metric 'tasks' (lm-evaluation-harness)", "tasks")
        from ..harness.catalogue import opened

        return [task for name in self.names for task in opened(name, self.shots, self.seed, self.execute)]

    def questions(self) -> tuple[Text, ...]:
        """What is asked, each question with its right answer, as a text per name. Raises RecipeError and CorpusError."""
        return tuple(self.text_of(one) for one in self.opened())

    def text_of(self, one: Any) -> Text:
        """The same of one name that was opened."""
        from ..harness.running import questions

        said = tuple(text for task in one.tasks for text in questions(task, self.limit))
        return Text(one.name, _split(one.tasks[0]), said, QUESTIONS)

    def measure(self, model: nn.Module, context: Context) -> tuple[Measurement, ...]:
        if not predicts_next(model):
            raise RecipeError("tasks need a model that predicts the next token; this one does not.")
        check_tokenizer(context.tokenizer, "tasks")
        opened = self.opened()
        from ..harness.running import asked
        from ..harness.scorer import Scorer

        total = sum(_questions(task, self.limit) for one in opened for task in one.tasks)
        name, found = "", []
        with evaluating(model):
            scorer = Scorer(model, context.tokenizer, self.batch, lambda done: context.watch(f"task {name}", min(done, total), total))
            how = how_read(model, context.tokenizer, context.stored)
            for one in opened:
                name, start, before, whole = one.name, time.perf_counter(), scorer.done, scorer.cut
                chosen = self._chosen(one)
                outcomes = [asked(task, scorer, self.limit) for task in one.tasks]
                scorer.done = before + sum(_questions(task, self.limit) for task in one.tasks)
                seconds = time.perf_counter() - start
                alone = scorer.own_passes and one.tasks[0].OUTPUT_TYPE != "generate_until"
                cut = scorer.cut - whole
                short = f", {cut} text{'s' * (cut > 1)} cut at the left to {scorer.max_length} tokens" if cut else ""
                read = how + short + ("" if alone else f", {self.batch} together")
                protocols = [self._protocol(one, outcomes, which, read) for which in chosen]
                found += [_measurement(one, outcomes, which, protocol, seconds) for which, protocol in zip(chosen, protocols, strict=True)]
            context.watch(f"task {name}", total, total)
        return tuple(found)

    def _chosen(self, one: Any) -> list[tuple[str, str]]:
        """Metrics, and how answers are read for them, that all tasks of a name have. Raises RecipeError."""
        task = one.tasks[0]
        names = [name for name in task.aggregation() if all(name in other.aggregation() for other in one.tasks)]
        first = next((name for name in _FIRST if name in names), names[0])
        read = task._filters[0].name
        for name in self.metrics:
            if name not in names:
                raise RecipeError(f"tasks: metrics: task '{one.name}' has no '{name}'{nearest(name, names)} Known: {', '.join(names)}.")
        return [(name, read) for name in self.metrics or (first,)]

    def _protocol(self, one: Any, outcomes: Sequence[Any], which: tuple[str, str], how: str) -> str:
        (metric, read), task, several = which, one.tasks[0], len(one.tasks)
        count, of = (sum(getattr(found, name) for found in outcomes) for name in ("count", "of"))
        shots = task.config.num_fewshot
        split = _split(task)
        drawn = f", drawn with seed {self.seed}" if shots else ""
        taken = f"first {count} of {of} examples" if several == 1 else (
            f"{several} tasks of which {'examples' if one.by_size else 'tasks'} weigh the same, "
            f"{f'first {self.limit} of each' if self.limit else 'all'}: {count} of {of} examples")
        digests = [_all(found.data for found in outcomes), _all(found.prompts for found in outcomes)]
        asked = "" if read == "none" else f" {read}"
        return (f"{one.name} {metric}{asked}, lm-eval {version('lm_eval')} task version {task.VERSION}, {split} split, {taken}, "
                f"{shots} shots{drawn}, config sha256 {_all(map(_digest, one.tasks))}, text sha256 {digests[0]}, "
                f"prompts sha256 {digests[1]}, {how}")


def _split(task: Any) -> str:
    return str(task.config.test_split or task.config.validation_split)


def _questions(task: Any, limit: int | None) -> int:
    """Texts that a task has the model read or write, about."""
    documents = task.task_docs
    choices = len(task.doc_to_choice(documents[0])) if task.OUTPUT_TYPE == "multiple_choice" else 1
    return choices * min(limit or len(documents), len(documents))


def _measurement(one: Any, outcomes: Sequence[Any], which: tuple[str, str], protocol: str, seconds: float) -> Measurement:
    """One number from what every example is worth."""
    from lm_eval.api.metrics import mean, perplexity

    metric, read = which
    task = one.tasks[0]
    aggregate: Callable[[Sequence[Any]], float] = task.aggregation()[metric]
    better: Literal["lower", "higher"] = "higher" if task.higher_is_better()[metric] else "lower"
    prefixes = [f"{single.task_name}/" if len(one.tasks) > 1 else "" for single in one.tasks]
    examples = tuple(Example(f"{prefix}{given.name}", given.right, given.said, given.likelihoods)
                     for prefix, found in zip(prefixes, outcomes, strict=True) for given in found.examples[read])
    if which not in outcomes[0].items:
        given = ", ".join(sorted({name for name, _ in outcomes[0].items}))
        raise RecipeError(f"tasks: task '{one.name}' gave no {metric}, but {given}. Name one of these in metrics.")
    items = [item for found in outcomes for item in found.items[which]]
    if aggregate is perplexity:
        losses = tuple(-float(item) for item in items)
        value = math.fsum(losses) / len(losses)
        return Measurement(math.inf if value >= 700 else math.exp(value), "perplexity", better, protocol, losses, seconds, "losses",
                           examples=examples)
    if aggregate is mean:
        parts = _weighed([found.items[which] for found in outcomes]) if not one.by_size else tuple(map(float, items))
        unit = "share" if set(map(float, items)) <= {0, 1} else metric
        return Measurement(math.fsum(parts) / len(parts), unit, better, protocol, parts, seconds, "means", examples=examples)

    def of(indices: Tensor) -> float:
        return float(aggregate([items[index] for index in indices.tolist()]))

    parts = tuple(float(aggregate([item])) for item in items)
    return Measurement(float(aggregate(items)), metric, better, protocol, parts, seconds, "means",
                       statistic_draws(of, len(items), _DRAWS), examples)


def _weighed(tasks: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """What examples are worth when tasks weigh the same: the mean of all is the mean of the tasks' means."""
    total = sum(map(len, tasks))
    return tuple(float(item) * total / (len(tasks) * len(items)) for items in tasks for item in items)


def _digest(task: Any) -> str:
    """Of what a task's configuration says of prompts and scores; where its documents lie is no part of it."""
    apart = ("custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs", "metadata", "num_fewshot", "training_split", "test_split",
             "validation_split", "fewshot_split", "fewshot_config", "metric_list")
    said = {key: value for key, value in task.dump_config().items() if key not in apart}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=_named).encode()).hexdigest()[:16]


def _named(value: Any) -> str:
    """Functions by their names, as where they lie in memory changes."""
    return str(getattr(value, "__qualname__", value))


def _all(digests: Any) -> str:
    """One digest of several; of one itself."""
    several = list(digests)
    return str(several[0]) if len(several) == 1 else hashlib.sha256("".join(several).encode()).hexdigest()[:16]
