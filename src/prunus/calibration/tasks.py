"""Tasks: corpora with labels, split for training and encoded for a model."""

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CorpusError, RecipeError
from ..scores import MetricName, check_metric, default_metric
from ..traits import classifies, padding_of
from .corpus import files_of, rows_of
from .sample import check_length, check_tokenizer, how_read

__all__ = ["Encoded", "Examples", "Labelled", "Split", "Task", "encoded", "outputs_of"]

Split = Literal["train", "validation", "test"]

_TEXTS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("question1", "question2"),
          ("question", "passage"), ("text1", "text2"), ("sentence",), ("text",))  # columns of the field's data sets
_LABELS = ("label", "labels", "score", "gold", "target", "class")
_TRAIN, _APART = 0.7, 0.2  # of a file: what is for training; what is for the test, where there is no other file


@dataclass(frozen=True)
class Task:
    """A labelled corpus: sentences, or pairs of them, with a class or a number each.

    Its training file is split by `seed` into 70 % for training and 30 % for validation, and the official validation file is the
    test (Klein et al. 2024, whose validation of 2048 examples at most is the default). Where a corpus has one file only, a fifth
    of it is the test, the same for every seed.
    """

    corpus: str  # a name in PRUNUS_DATA (glue_rte, …), or a .jsonl file
    test: str = ""  # a .jsonl file to test on; empty: the validation (or test) file of the corpus
    kind: Literal["auto", "classification", "regression"] = "auto"  # auto: by whether labels have decimal points
    text: tuple[str, ...] = ()  # one column, or two; none: those with names the field knows, or the only ones of text
    label: str = ""  # its column; empty: one with a name the field knows (label, score, …)
    rows: int = 0  # of the training file, drawn once for all seeds; 0: all
    validation: int = 2048  # examples at most; 0: all
    length: int = 128  # tokens per example at most; the longer one of a pair is cut first
    metric: Literal["auto", MetricName] = "auto"  # accuracy, f1, matthews, spearman, pearson; auto: by corpus, as GLUE says
    seed: int = 0  # of the split

    def __post_init__(self) -> None:
        if len(self.text) > 2 or min(self.rows, self.validation) < 0 or self.length < 4:
            raise RecipeError(f"text = {list(self.text)}, rows = {self.rows}, validation = {self.validation}, length = {self.length}: "
                              "expected at most two columns, no negative number of rows, and at least 4 tokens.")

    def read(self) -> "Labelled":
        """Its three splits. Raises CorpusError when columns or labels are missing, or are not what they have to be."""
        files = list(files_of(self.corpus).values())
        columns, rows = self._table(files[0])
        if self.test or len(files) > 1:
            tested = Path(self.test) if self.test else files[1]
            if not tested.is_file():
                raise CorpusError(f"test '{self.test}': no such file.")
            if tested.samefile(files[0]):
                raise CorpusError(f"test '{tested}': is the training file too, so it would tell nothing. Name another one, or none: a "
                                  "fifth of a single file is the test.")
            apart = self._table(tested, columns)[1]
        else:
            order = _shuffled(len(rows), "test")
            cut = round(_APART * len(rows))
            apart, rows = [rows[place] for place in sorted(order[:cut])], [rows[place] for place in sorted(order[cut:])]
        if self.rows:
            rows = [rows[place] for place in sorted(_shuffled(len(rows), "rows")[: self.rows])]
        return self._split(columns, rows, apart)

    def _split(self, columns: tuple[str, ...], rows: list["_Row"], apart: list["_Row"]) -> "Labelled":
        order = _shuffled(len(rows), str(self.seed))
        cut = round(_TRAIN * len(rows))
        parts = {"train": [rows[place] for place in order[:cut]], "validation": [rows[place] for place in order[cut:]], "test": apart}
        if self.validation:
            parts["validation"] = parts["validation"][: self.validation]
        name = Path(self.corpus).name
        for split, part in parts.items():
            if not part:
                raise CorpusError(f"task '{name}': no example is left for {split}; {len(rows) + len(apart)} in all.")
        labels = [row.label for row in parts["train"]]
        regression = self.kind == "regression" or (self.kind == "auto" and any(isinstance(label, float) for label in labels))
        known = (columns[-1],) if regression else _classes(labels, name)
        for part in parts.values():
            _check_labels(part, regression, known)
        metric = default_metric(self.corpus, regression) if self.metric == "auto" else self.metric
        check_metric(metric, regression, f"task '{name}'")
        examples = [Examples(name, split, tuple(row.texts for row in part), tuple(row.label for row in part))
                    for split, part in parts.items()]
        return Labelled(self, columns, known, metric, *examples)

    def _table(self, file: Path, columns: tuple[str, ...] = ()) -> tuple[tuple[str, ...], list["_Row"]]:
        """The columns of text and then that of the label, and what is in them. Raises CorpusError."""
        found = rows_of(file)
        if not found:
            raise CorpusError(f"corpus file {file}: it has no example.")
        columns = columns or self._columns(found[0][1], file)
        return columns, [_row(row, columns, f"corpus file {file}, line {number}") for number, row in found]

    def _columns(self, row: dict[str, Any], file: Path) -> tuple[str, ...]:
        label = self.label or next((name for name in _LABELS if name in row), "")
        words = tuple(name for name, value in row.items() if isinstance(value, str) and name != label)
        known = next((names for names in _TEXTS if set(names) <= set(words)), words if len(words) <= 2 else ())
        text = self.text or known
        missing = [name for name in (*text, label) if name not in row]
        if missing or not text:
            what = f"no column '{missing[0] or 'label'}'" if missing else "no column of text with a name that is known"
            raise CorpusError(f"corpus file {file}: {what}, found {', '.join(row) or 'none'}. Name the columns: text=[\"…\"], label=….")
        return (*text, label)


@dataclass(frozen=True)
class _Row:
    texts: tuple[str, ...]
    label: Any
    where: str


@dataclass(frozen=True)
class Examples:
    """One split of a task."""

    name: str
    split: str
    texts: tuple[tuple[str, ...], ...]  # one or two per example
    labels: tuple[Any, ...]  # as they stand in the file

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """A hash of the content."""
        return hashlib.sha256(repr((self.texts, self.labels)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Labelled:
    """A task as it was read."""

    task: Task
    columns: tuple[str, ...]  # of text, and then that of the label
    labels: tuple[str, ...]  # the names of the classes, at least two; of numbers the column's
    metric: MetricName
    train: Examples
    validation: Examples
    test: Examples

    @property
    def regression(self) -> bool:
        """Whether labels are numbers."""
        return len(self.labels) == 1

    def split(self, name: Split) -> Examples:
        """One of the three."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


@dataclass(frozen=True)
class Encoded:
    """A split as a model reads it."""

    tokens: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]  # which text of a pair each token is of; none where the model does not ask
    targets: Tensor  # by example: the index of its class, or a float
    caches: bool  # whether the model keeps keys and values unless it is told not to
    padding: int  # the token that fills up
    classes: int  # outputs of the model; 1 where targets are floats
    metric: MetricName
    protocol: str  # all but the metric's name

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, which: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Any]:
        """What the model is called with for some of the examples, filled up behind to the length of the longest."""
        width = max(len(self.tokens[index]) for index in which)
        given = {"input_ids": _filled((self.tokens[index] for index in which), width, self.padding),
                 "attention_mask": _filled(((1,) * len(self.tokens[index]) for index in which), width, 0)}
        if self.types:
            given["token_type_ids"] = _filled((self.types[index] for index in which), width, 0)
        on_device = {name: value.to(device) for name, value in given.items()}
        return {**on_device, "use_cache": False} if self.caches else on_device


def encoded(read: Labelled, split: Split, model: Any, tokenizer: Any, stored: str = "") -> Encoded:
    """A split for a model with a head of the task's labels, in the order that the model has them; `stored` is as in Loaded.

    Raises RecipeError when the model has no such head, or takes fewer tokens than the task's length.
    """
    import inspect

    task, examples = read.task, read.split(split)
    check_tokenizer(tokenizer, f"task '{examples.name}'")
    check_length(model, task.length, "task.length")
    order = outputs_of(model, read)
    given = tokenizer([texts[0] for texts in examples.texts], [texts[1] for texts in examples.texts] if len(read.columns) == 3 else None,
                      truncation=True, max_length=task.length, verbose=False)
    tokens = tuple(map(tuple, given["input_ids"]))
    takes = inspect.signature(model.forward).parameters
    typed = "token_type_ids" in given and "token_type_ids" in takes
    targets = torch.tensor([float(label) for label in examples.labels]) if read.regression else torch.tensor(
        [order.index(str(label)) for label in examples.labels])
    own = model.config.pad_token_id  # by which some models find the end of a sequence
    protocol = (f"text sha256 {examples.digest}, {len(examples)} examples{_subset(task)}, {' + '.join(read.columns[:-1])}, "
                f"at most {task.length} tokens, {how_read(model, tokenizer, stored)}")
    return Encoded(tokens, tuple(map(tuple, given["token_type_ids"])) if typed else (), targets, "use_cache" in takes,
                   padding_of(tokenizer) if own is None else own, len(read.labels), read.metric, f"{examples.name} {split}, {protocol}")


def _subset(task: Task) -> str:
    return f" of {task.rows} training rows" if task.rows else ""


def outputs_of(model: Any, read: Labelled) -> list[str]:
    """The names of the classes in the order of the model's outputs: its own, where it knows the same names. Raises RecipeError when it
    has no head of the task's labels."""
    if not classifies(model):
        raise RecipeError(f"task '{read.train.name}' needs a model with a head, and this is a {type(model).__name__}. "
                          "Load it with the task's labels.")
    if model.config.num_labels != len(read.labels):
        raise RecipeError(f"task '{read.train.name}' has {len(read.labels)} labels ({', '.join(read.labels[:5])}), and the model's head "
                          f"has {model.config.num_labels} outputs. Load it with the task's labels.")
    theirs = [str(model.config.id2label[index]) for index in range(len(read.labels))]
    return theirs if set(theirs) == set(read.labels) else list(read.labels)


def _row(row: dict[str, Any], columns: tuple[str, ...], where: str) -> _Row:
    *names, label = columns
    missing = next((name for name in columns if row.get(name) is None), None)
    if missing:
        raise CorpusError(f"{where}: no '{missing}', found {', '.join(row) or 'nothing'}.")
    texts = tuple(row[name] for name in names)
    if not all(isinstance(text, str) for text in texts) or not any(text.strip() for text in texts):
        raise CorpusError(f"{where}: expected text in {' and '.join(names)}, found {', '.join(repr(text)[:40] for text in texts)}.")
    if not isinstance(row[label], str | int | float):
        raise CorpusError(f"{where}: '{label}' is {repr(row[label])[:40]}, expected a word or a number.")
    return _Row(texts, row[label], where)


def _classes(labels: list[Any], name: str) -> tuple[str, ...]:
    """The names of the classes: numbers in ascending order, words by the alphabet. Raises CorpusError."""
    found = set(labels)
    if len({isinstance(label, str) for label in found}) > 1:
        raise CorpusError(f"task '{name}': some labels are words and others numbers ({', '.join(sorted(map(str, found))[:5])}).")
    if len(found) < 2:
        raise CorpusError(f"task '{name}': all {len(labels)} examples for training have the label {labels[0]!r}; expected two classes "
                          "at least.")
    return tuple(str(label) for label in sorted(found))


def _check_labels(part: list[_Row], regression: bool, known: tuple[str, ...]) -> None:
    for row in part:
        if regression and (isinstance(row.label, str | bool) or not math.isfinite(row.label)):
            raise CorpusError(f"{row.where}: label {row.label!r}, expected a number.")
        if not regression and str(row.label) not in known:
            raise CorpusError(f"{row.where}: label {row.label!r} is not among those of the training split: {', '.join(known[:5])}.")


def _filled(rows: Iterable[Sequence[int]], width: int, value: int) -> Tensor:
    return torch.tensor([[*row, *(value,) * (width - len(row))] for row in rows], dtype=torch.long)


def _shuffled(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
