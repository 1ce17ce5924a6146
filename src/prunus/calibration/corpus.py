"""Where tokens come from: named corpora, files, and windows of equal length cut from them."""

import gzip
import hashlib
import importlib
import json
import os
import random
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import CorpusError, MissingExtra, nearest
from ..grams import WORDS, run_of
from ..hub import reachable

__all__ = ["HUB", "QUESTIONS", "Text", "check_apart", "files_of", "has_split", "located", "overlap", "read", "rows_of", "windows"]

HUB = {  # name: (hub id, configuration, column)
    "c4": ("allenai/c4", "en", "text"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text"),
    "ptb": ("ptb-text-only/ptb_text_only", "penn_treebank", "sentence"),
}
_FILES = {  # split: how the names of its files begin or what they contain, in this order
    "train": ("train", "calib", "sample", "input"),
    "validation": ("valid",),
    "test": ("test",),
}
_ENDINGS = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".txt.gz", ".txt", ".raw.gz", ".raw", ".md")
QUESTIONS = "questions with their right answers"  # what the documents of a task are
_JOINED = "documents joined by '\\n\\n'"
_JOIN = {"wikitext2": "\n\n", "ptb": " "}  # rows of these corpora are lines of one text (GPTQ's protocol)


@dataclass(frozen=True)
class Text:
    """Documents of one split of one corpus."""

    name: str
    split: str
    documents: tuple[str, ...]
    joined: str  # how documents become one text, for the protocol

    @property
    def digest(self) -> str:
        """A hash of the content."""
        return hashlib.sha256("\x00".join(self.documents).encode()).hexdigest()[:16]

    @property
    def run(self) -> int:
        """How many words make a run by which it is found in another text: 13, or of questions as many as most of them have."""
        return run_of(self.documents) if self.joined == QUESTIONS else WORDS

    def called(self, role: str) -> str:
        """What it is called beside others: "calibration text (c4 train)", "report questions (piqa validation)"."""
        return f"{role} {'questions' if self.joined == QUESTIONS else 'text'} ({self.name} {self.split})"

    def beginning(self, characters: int) -> "Text":
        """The same text as far as so many characters go, in whole documents but the last."""
        ends = [0, *accumulate(map(len, self.documents))]
        parts = (document[: characters - begin] for document, begin in zip(self.documents, ends, strict=False) if begin < characters)
        return replace(self, documents=tuple(parts))


def read(corpus: str, split: str = "train") -> Text:
    """The text of a named corpus or of a file.

    A name is looked for in the folder that the environment variable PRUNUS_DATA names (`<name>/*<split>*.jsonl.gz`,
    `.txt.gz`, …), then on the hub; "builtin" is English reference text that ships with CPython.
    Raises CorpusError when there is none, when it is empty, or when the split does not exist.
    """
    if corpus == "builtin":
        text = _builtin(split)
    elif Path(corpus).is_file():
        text = Text(Path(corpus).name, split, tuple(_rows(Path(corpus), "")), _JOINED)
    elif os.sep in corpus or corpus.endswith(_ENDINGS):
        raise CorpusError(f"corpus '{corpus}': no such file.")
    elif (folder := _folder(corpus)) is not None:
        text = _text(corpus, split, _rows(_file_of(folder, split), corpus))
    elif corpus in HUB:
        text = _text(corpus, split, _download(corpus, split))
    else:
        base, named = os.environ.get("PRUNUS_DATA"), [*HUB, "builtin", "self"]
        folders = [folder.name for folder in Path(base).iterdir() if folder.is_dir()] if base and Path(base).is_dir() else []
        raise CorpusError(f"corpus '{corpus}' is unknown: no such file, no such folder in PRUNUS_DATA ({base or 'not set'}), and not one "
                          f"of {', '.join(named)}{nearest(corpus, [*named, *folders])}")
    if not any(document.strip() for document in text.documents):
        raise CorpusError(f"corpus '{corpus}', split {split}: it is empty.")
    return text


def located(corpus: str, split: str) -> Path:
    """The file of a corpus that is a file, or lies in PRUNUS_DATA. Raises CorpusError."""
    return Path(corpus) if Path(corpus).is_file() else _file_of(_home(corpus), split)


def files_of(corpus: str) -> dict[str, Path]:
    """The files of a corpus in PRUNUS_DATA, by the splits it has; a file is its own training split. Raises CorpusError."""
    if Path(corpus).is_file():
        return {"train": Path(corpus)}
    found = {split: _file_of(_home(corpus), split) for split in _FILES if has_split(corpus, split)}
    return found or {"train": _file_of(_home(corpus), "train")}


def _home(corpus: str) -> Path:
    """The folder of a corpus that is no file. Raises CorpusError."""
    folder = _folder(corpus)
    if folder is None:
        raise CorpusError(f"corpus '{corpus}': no such file, and no such folder in PRUNUS_DATA "
                          f"({os.environ.get('PRUNUS_DATA') or 'not set'}).")
    return folder


def rows_of(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, with their lines. Raises CorpusError."""
    with _readable(file) as lines:
        return [(number, _object(line, file, number)) for number, line in enumerate(lines, 1) if line.strip()]


def has_split(corpus: str, split: str) -> bool:
    """Whether a corpus has a split of this name; a file has any."""
    if corpus == "builtin" or Path(corpus).is_file():
        return True
    if (folder := _folder(corpus)) is not None:
        return any(word in file.name for word in _FILES[split] for file in _files_of(folder))
    return corpus != "c4" or split != "test"


def _folder(corpus: str) -> Path | None:
    """The corpus in the folder that PRUNUS_DATA names, if it is there."""
    base = os.environ.get("PRUNUS_DATA")
    return Path(base) / corpus if base and (Path(base) / corpus).is_dir() else None


def _files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.endswith(_ENDINGS))


def _text(name: str, split: str, rows: Iterable[str]) -> Text:
    """Rows as documents; lines of corpora that are one running text are joined as the field does."""
    if name in _JOIN:
        return Text(name, split, (_JOIN[name].join(rows),), f"rows joined by {_JOIN[name]!r}")
    return Text(name, split, tuple(rows), _JOINED)


def _file_of(folder: Path, split: str) -> Path:
    if split not in _FILES:
        raise CorpusError(f"corpus '{folder.name}': split '{split}' is unknown. Known: {', '.join(_FILES)}.")
    files = _files_of(folder)
    for word in _FILES[split]:
        for file in files:
            if word in file.name:
                return file
    found = ", ".join(file.name for file in files) or "no text file"
    raise CorpusError(f"corpus '{folder.name}' has no split '{split}' in {folder}: found {found}.")


def _rows(file: Path, corpus: str) -> list[str]:
    """JSONL: the "text" of every row. Other text: one document, or WikiText's lines as the hub's rows have them."""
    with _readable(file) as lines:
        if _in_rows(file):
            return [_field(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
        if corpus == "wikitext2":
            return [line if line.strip() else "" for line in lines]
        if corpus == "ptb":
            return [line.strip() for line in lines]
        return [lines.read()]


def _in_rows(file: Path) -> bool:
    """Whether it is JSONL; C4's own files are, and end in .json.gz."""
    return file.name.removesuffix(".gz").endswith((".jsonl", ".json"))


@contextmanager
def _readable(file: Path) -> Iterator[TextIO]:
    """A file, unpacked if need be. Raises CorpusError when it cannot be read."""
    try:
        opened = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")
        with opened as lines:
            yield cast(TextIO, lines)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        form = "JSONL" if _in_rows(file) else "text"
        raise CorpusError(f"corpus file {file}: cannot be read as UTF-8 {form}: {error}") from None


def _object(line: str, file: Path, number: int, what: str = "an object") -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"corpus file {file}, line {number}: not valid JSON: {error.msg}.") from None
    if not isinstance(row, dict):
        raise CorpusError(f"corpus file {file}, line {number}: expected {what}, found {type(row).__name__}.")
    return row


def _field(line: str, file: Path, number: int) -> str:
    what = "an object with a string \"text\""
    row = _object(line, file, number, what)
    if not isinstance(row.get("text"), str):
        raise CorpusError(f"corpus file {file}, line {number}: expected {what}, found keys {', '.join(row)}.")
    return str(row["text"])


def _builtin(split: str) -> Text:
    """Python's own language reference: every other topic calibrates; of the rest two thirds are for reports, and the last third is for
    searches and choices. No line is in two of them."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    names = sorted(topics)
    cut = 2 * len(names[1::2]) // 3
    chosen = {"train": names[::2], "test": names[1::2][:cut], "validation": names[1::2][cut:]}  # each without what those before it have
    if split not in chosen:
        raise CorpusError(f"corpus 'builtin': split '{split}' is unknown. Known: train, validation, test.")
    known: set[str] = set()
    for part, wanted in chosen.items():
        found = tuple("\n\n".join(paragraph for paragraph in topics[name].split("\n\n") if known.isdisjoint(_lines([paragraph])))
                      for name in wanted)
        if part == split:
            break
        known |= set(_lines(found))
    return Text("builtin", split, found, _JOINED)


def _download(corpus: str, split: str) -> list[str]:
    """Rows from the hub; of a huge corpus the first file of the split."""
    identity, configuration, column = HUB[corpus]
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingExtra(f"corpus '{corpus}' (not found in PRUNUS_DATA)", "data") from None
    files = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
    if corpus == "c4" and split not in files:
        raise CorpusError(f"corpus 'c4' has no split '{split}'. Known: {', '.join(files)}.")
    unknown = f"corpus '{corpus}': not in PRUNUS_DATA ({os.environ.get('PRUNUS_DATA') or 'not set'}) and "
    if not reachable():
        raise CorpusError(f"{unknown}the hub cannot be reached. Set PRUNUS_DATA, name a file, or use 'builtin'.")
    try:
        if corpus == "c4":
            rows = load_dataset(identity, data_files={split: files[split]}, split=split)
        else:
            rows = load_dataset(identity, configuration, split=split)
    except Exception as error:  # the hub's client raises many kinds; the reason is passed on
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(f"{unknown}the hub gave no answer ({reason}). "
                          "Set PRUNUS_DATA, name a file, or use 'builtin'.") from None
    return [str(row[column]) for row in rows]


def windows(text: Text, tokenizer: Any, length: int, count: int | None, seed: int | None = None,
            bos: bool = False) -> Int[Tensor, "samples length"]:
    """At most `count` windows of `length` tokens that do not overlap.

    Without a seed: from the beginning of the text, in order. With one: documents in random order, or windows of a
    text that is one document. With `bos` every window begins with the tokenizer's BOS token.
    Raises CorpusError when the text is shorter than one window.
    """
    body = length - 1 if bos else length
    shuffled = random.Random(seed)
    documents = list(text.documents)
    if seed is not None and len(documents) > 1:
        shuffled.shuffle(documents)
    running = len(documents) == 1
    needed = None if count is None or (running and seed is not None) else count * body
    tokens = _tokens(documents, tokenizer, needed)
    found = len(tokens) // body
    if found == 0:
        raise CorpusError(f"corpus '{text.name}', split {text.split}: {len(tokens)} tokens, shorter than one sequence "
                          f"of {length}. Use shorter sequences or a longer text.")
    order = list(range(found))
    if seed is not None and running:
        shuffled.shuffle(order)
    chosen = sorted(order[:count])
    table = tokens[: found * body].view(found, body)[chosen]
    if not bos:
        return table
    return torch.cat([torch.full((len(table), 1), tokenizer.bos_token_id), table], dim=1)


def _tokens(documents: list[str], tokenizer: Any, needed: int | None) -> Tensor:
    """Documents joined by an empty line and tokenised, until there are enough; without special tokens."""
    if len(documents) == 1 and needed is not None:
        documents = _beginning(documents[0], tokenizer, needed)
    pieces: list[int] = []
    for start in range(0, len(documents), 64):
        joined = "\n\n".join(documents[start : start + 64])
        if start:
            joined = "\n\n" + joined
        pieces += tokenizer(joined, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        if needed is not None and len(pieces) >= needed:
            break
    return torch.tensor(pieces, dtype=torch.long)


def _beginning(text: str, tokenizer: Any, needed: int) -> list[str]:
    """As much of a text as `needed` tokens and a margin take: what follows that far behind does not change them."""
    size = 8 * needed
    while size < len(text) and len(tokenizer(text[:size], add_special_tokens=False, verbose=False)["input_ids"]) < needed + 1000:
        size *= 2
    return [text[:size]]


def overlap(ours: Text, theirs: Text) -> float:
    """The fraction of `theirs` (by characters, in lines of 40 or more) that stands in `ours` as well."""
    if ours.digest == theirs.digest:
        return 1.0
    known, asked = set(_lines(ours.documents)), _lines(theirs.documents)
    total = sum(map(len, asked))
    return sum(len(line) for line in asked if line in known) / total if total else 0.0


def check_apart(ours: str, one: Text | None, theirs: str, other: Text | None) -> None:
    """Refuse two texts of which one holds more than a hundredth of the other. Raises CorpusError."""
    if one is not None and other is not None and (share := overlap(one, other)) > 0.01:
        raise CorpusError(f"{ours} text ({one.name} {one.split}) holds {share:.0%} of the {theirs} text "
                          f"({other.name} {other.split}). Name another corpus or split for one of them.")


def _lines(documents: Iterable[str]) -> list[str]:
    """The lines long enough that two texts do not share them by chance."""
    return [line.strip() for document in documents for line in document.splitlines() if len(line.strip()) >= 40]
