"""A task put to a model, as the harness does it, with what every single example gave."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from ..widening import widened
from .catalogue import quiet, unwarned

__all__ = ["Given", "Outcome", "asked", "questions"]

_SHORT = 3  # characters up to which a string stands in a prompt by chance


@dataclass(frozen=True)
class Given:
    """One example, and what the model gave for it."""

    name: str  # its id, or its place in the data
    right: str  # the answer; of several choices the place of the right one
    said: str  # by the model; of several choices the place of the most probable one
    likelihoods: tuple[float, ...]  # logarithms, one per choice; of texts that were written none


@dataclass(frozen=True)
class Outcome:
    """What one task gave by all its metrics, on the same examples."""

    examples: dict[str, tuple[Given, ...]]  # by how answers were read (the harness's filters)
    items: dict[tuple[str, str], list[Any]]  # by metric and filter: what each example is worth, to be aggregated
    data: str  # sha256 of the examples
    prompts: str  # sha256 of all that the model was asked
    count: int  # examples that were asked
    of: int  # examples that there are


@widened()
def asked(task: Any, model: Any, limit: int | None) -> Outcome:
    """The first `limit` examples of a task, or all of them. `model` is an lm_eval.api.model.LM."""
    with quiet():
        documents = task.eval_docs
        of = len(documents)
        count = min(limit or of, of)
        task.build_all_requests(limit=count)
    requests: dict[str, list[Any]] = defaultdict(list)
    for instance in task.instances:
        requests[instance.request_type] += [instance] * instance.repeats
    for kind, several in requests.items():
        try:
            with unwarned():  # but in the open, as it tells how far it is
                answers = getattr(model, kind)(several, disable_tqdm=True)
        except AssertionError as error:  # how the harness says that a model's positions are too few
            short = f"an answer has more than the {model.max_length} tokens that the model reads at once. Leave the task out."
            raise RecipeError(f"task '{task.task_name}': {' '.join(str(error).split()) or short}") from None
        for instance, answer in zip(several, answers, strict=True):
            instance.resps.append(answer)
    with quiet():
        task.apply_filters()
    by_document: dict[int, list[Any]] = defaultdict(list)
    for instance in sorted(task.instances, key=lambda instance: instance.idx):
        by_document[instance.doc_id].append(instance)
    rows = [documents[place] for place in range(count)]
    items: dict[tuple[str, str], list[Any]] = defaultdict(list)
    examples: dict[str, tuple[Given, ...]] = {}
    for name in task.instances[0].filtered_resps:
        given = []
        for place, row in enumerate(rows):
            found = [instance.filtered_resps[name] for instance in by_document[place]]
            for metric, value in task.process_results(row, found).items():
                items[metric, name].append(value)
            given.append(_given(task, place, row, found))
        examples[name] = tuple(given)
    prompts = [repr(instance.args) for instance in task.instances]
    return Outcome(examples, dict(items), _digest(rows), hashlib.sha256("\x00".join(prompts).encode()).hexdigest()[:16], count, of)


def questions(task: Any, limit: int | None) -> tuple[str, ...]:
    """The first `limit` examples of a task, or all of them, as text: each with its right answer, without examples before it and without
    the words that the prompt puts around all of them ("Question:", "Answer:"), which another text need not have."""
    with quiet():
        documents = task.eval_docs
        return tuple(_question(task, documents[place]) for place in range(min(limit or len(documents), len(documents))))


def _question(task: Any, row: Any) -> str:
    text, target = task.doc_to_text(row), task.doc_to_target(row)
    choices = task.doc_to_choice(row) if task.OUTPUT_TYPE == "multiple_choice" else None
    if choices is not None and isinstance(text, int):  # several beginnings, of which one goes with the rest of the sentence
        text = choices[text]
    elif choices is not None and isinstance(target, int):
        target = choices[target]
    answers = target if isinstance(target, list | tuple) else [target]
    return " ".join(str(part).strip() for part in (_own(str(text), row), *answers[:1]))


def _own(prompt: str, row: Any) -> str:
    """What of a prompt is the example's: the strings of the row that stand in it, in their order there; all of it where there are none."""
    spans: list[tuple[int, int]] = []
    for part in sorted(set(_strings(row)), key=lambda part: (-len(part), part)):
        begin = prompt.find(part)
        end = begin + len(part)
        if begin >= 0 and len(part) > _SHORT and all(begin >= other or end <= first for first, other in spans):
            spans.append((begin, end))
    return " ".join(prompt[begin:end] for begin, end in sorted(spans)) or prompt


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value.strip()
        case dict():
            for item in value.values():
                yield from _strings(item)
        case list():
            for item in value:
                yield from _strings(item)


def _given(task: Any, place: int, row: Any, found: Sequence[Any]) -> Given:
    name = next((str(row[key]) for key in ("id", "idx", "task_id", "ind", "orig_idx") if isinstance(row, dict) and key in row), str(place))
    chosen = task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood")
    likelihoods = tuple(float(value[0]) for value in found) if chosen else ()
    right: Any = task.doc_to_target(row)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(row)
        right = task.doc_to_text(row) if getattr(task, "multiple_input", 0) else choices.index(right) if right in choices else right
        said = str(max(range(len(likelihoods)), key=likelihoods.__getitem__))
    else:
        said = str(found[0][1]) if chosen else _text(found[0])
    return Given(name, str(right), said, likelihoods)


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer[0]) if isinstance(answer, list | tuple) and answer else str(answer)


def _digest(rows: Sequence[Any]) -> str:
    text = "\x00".join(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
