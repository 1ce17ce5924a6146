"""Multiple-choice examples: what a model is asked, and which of the answers it should find most probable."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import CorpusError
from .corpus import Text, located, rows_of

__all__ = ["Choices", "Example", "as_text", "encoded", "examples"]

_CONTEXT = ("context", "query", "question", "question_stem")  # keys of the field's data sets
_ANSWER = ("answer", "gold", "answerKey", "label")


@dataclass(frozen=True)
class Example:
    """A context, answers to choose from, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Choices:
    """Examples as rows of tokens, `ways` rows each: the context and one of the choices, padded behind."""

    tokens: Int[Tensor, "rows length"]
    chosen: Bool[Tensor, "rows length"]  # the tokens of the choice
    answers: Int[Tensor, "examples"]
    ways: int  # the largest number of choices; rows of an example that has fewer have no chosen token

    def __len__(self) -> int:
        return len(self.answers)

    def taking(self, which: Sequence[int]) -> "Choices":
        """Some of the examples."""
        index = torch.tensor(which, dtype=torch.long)
        rows = (index[:, None] * self.ways + torch.arange(self.ways)).flatten()
        return Choices(self.tokens[rows], self.chosen[rows], self.answers[index], self.ways)


def examples(corpus: str, split: str = "train") -> list[Example]:
    """The examples of a JSONL file, or of a corpus in PRUNUS_DATA.

    A row has a context (key context, query, question or question_stem), choices (a list of strings, or an object with a list
    "text" and a list "label"), and an answer (key answer, gold, answerKey or label: an index from 0, or a label).
    Raises CorpusError that names the file and line.
    """
    file = located(corpus, split)
    found = [_example(row, file, number) for number, row in rows_of(file)]
    if not found:
        raise CorpusError(f"corpus file {file}: it has no example.")
    return found


def as_text(found: Sequence[Example], corpus: str, split: str) -> Text:
    """What a model could have read of them, to be compared with other texts: every choice behind its context."""
    said = ("\n".join(f"{example.context} {choice}" for choice in example.choices) for example in found)
    return Text(Path(corpus).name, split, tuple(said), "one row each")


def encoded(found: Sequence[Example], tokenizer: Any, count: int, length: int, seed: int, bos: bool) -> Choices:
    """`count` examples chosen by `seed`; where a row has more than `length` tokens, the last ones are taken."""
    drawn = random.Random(seed).sample(list(found), min(count, len(found)))
    ways = max(len(example.choices) for example in drawn)
    rows: list[tuple[list[int], int]] = []  # tokens, and how many of them, from the end, are the choice's
    for example in drawn:
        start = [tokenizer.bos_token_id] if bos else []
        before = len(tokenizer(example.context, add_special_tokens=False)["input_ids"])
        for choice in example.choices:
            tokens = tokenizer(f"{example.context} {choice.strip()}", add_special_tokens=False)["input_ids"]
            rows.append(((start + tokens)[-length:], min(max(len(tokens) - before, 1), length - 1)))
        rows += [([], 0)] * (ways - len(example.choices))
    width = max(len(tokens) for tokens, _ in rows)
    whole, chosen = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for index, (tokens, last) in enumerate(rows):
        whole[index, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        chosen[index, len(tokens) - last : len(tokens)] = True
    return Choices(whole, chosen, torch.tensor([example.answer for example in drawn]), ways)


def _example(row: dict[str, Any], file: Path, number: int) -> Example:
    context = next((row[key] for key in _CONTEXT if isinstance(row.get(key), str)), None)
    choices: Any = row.get("choices")
    labels = None
    if isinstance(choices, dict):
        choices, labels = choices.get("text"), choices.get("label")
    answer = next((row[key] for key in _ANSWER if key in row), None)
    if isinstance(labels, list) and answer in labels:
        answer = labels.index(answer)
    offered = [choice for choice in choices if isinstance(choice, str) and choice.strip()] if isinstance(choices, list) else []
    whole = len(offered) > 1 and len(offered) == len(choices)
    if context is None or not whole or not isinstance(answer, int) or not 0 <= answer < len(offered):
        raise CorpusError(f"corpus file {file}, line {number}: expected a context ({', '.join(_CONTEXT)}), a list of at least two "
                          f"\"choices\" and the index of the right one ({', '.join(_ANSWER)}), found keys {', '.join(row)}.")
    return Example(context, tuple(offered), answer)
