"""What two texts have in common, as the share of runs of 13 words of the one that stand in the other; no text is kept.

Runs of 13 words are those by which GPT-3's authors looked for test text in training text, with shorter ones for short documents (Brown
et al. 2020, appendix C). Words are runs of letters and digits of a document after Unicode's NFKC and in lower case; what is between
them (spaces, line breaks, punctuation) does not count, and no run goes over the end of a document.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy

__all__ = ["WORDS", "Grams", "Looked", "Overlap", "grams_of", "overlap_of", "run_of"]

WORDS = 13  # in a run
_LEAST = 8  # in a run of short documents
_MOST = 2**26  # characters of a text that are looked at
_WORD = re.compile(r"[^\W_]+")
_FACTOR = numpy.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a run is shifted out


@dataclass(frozen=True)
class Grams:
    """The hashes of all runs of so many words of a text, in its order."""

    hashes: numpy.ndarray
    begins: tuple[tuple[int, int], ...]  # (where a document's hashes begin, which document of the text it is)
    words: int = WORDS  # in a run

    def place(self, index: int) -> tuple[int, int]:
        """The document of a run and the word that it begins with, both from 0."""
        begin, document = max((pair for pair in self.begins if pair[0] <= index), default=(0, 0))
        return document, index - begin


@dataclass(frozen=True)
class Overlap:
    """How much of one text stands in another, which was looked at before."""

    before: str  # "calibration text (c4 train)"
    text: str  # "report text (wikitext2 test)"
    runs: int  # of so many words, in the text
    shared: int  # of these that stand in the text before
    example: tuple[int, int] | None  # the first shared one: the document of the text, and the word in it, both from 0
    words: int = WORDS  # in a run

    @property
    def share(self) -> float:
        """Of the runs of the text."""
        return self.shared / self.runs if self.runs else 0.0

    def __str__(self) -> str:
        where = f", first at word {self.example[1] + 1} of document {self.example[0] + 1}" if self.example else ""
        runs = f"{self.shared:,} of {self.runs:,} runs of {self.words} words"
        return f"{self.share:.2%} of the {self.text} ({runs}) stand in the {self.before}{where}"


def run_of(documents: Sequence[str]) -> int:
    """How many words make a run of these documents: as many as the shortest twentieth has at most, but from 8 to 13 (Brown et al. 2020,
    appendix C); documents without a word do not count."""
    sizes = sorted(size for document in documents if (size := len(_words(document[:_MOST]))))
    return min(max(sizes[len(sizes) // 20], _LEAST), WORDS) if sizes else WORDS


def grams_of(documents: Sequence[str], words: int = WORDS) -> Grams:
    """Of a text, or of its first 64 million characters; 0.1 s per million."""
    known: dict[str, int] = {}
    hashes, begins, total, left = [numpy.zeros(0, numpy.uint64)], [], 0, _MOST
    for number, document in enumerate(documents):
        if left <= 0:
            break
        found = _hashes(document[:left], words, known)
        left -= len(document)
        if len(found):
            hashes.append(found)
            begins.append((total, number))
            total += len(found)
    return Grams(numpy.concatenate(hashes), tuple(begins), words)


def overlap_of(before: Grams, text: Grams, names: tuple[str, str] = ("other", "text")) -> Overlap:
    """How much of `text` stands in what was looked at before, by runs of as many words; `names` are theirs, in this order."""
    assert before.words == text.words
    shared = numpy.isin(text.hashes, numpy.unique(before.hashes))
    first = text.place(int(shared.argmax())) if shared.any() else None
    return Overlap(*names, len(shared), int(shared.sum()), first, text.words)


@runtime_checkable
class Documents(Protocol):
    """A text with a hash of its content."""

    @property
    def documents(self) -> Sequence[str]:
        """No run goes from one to the next."""
        ...

    @property
    def digest(self) -> str:
        """By which a text is known again."""
        ...

    @property
    def run(self) -> int:
        """How many words of it make a run."""
        ...


class Looked:
    """Texts that are compared with several others: every one is hashed once for each length of its runs."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Grams] = {}

    def overlap(self, before: Documents, text: Documents, names: tuple[str, str]) -> Overlap:
        """How much of `text` stands in `before`, by runs that are as long as those of `text`."""
        return overlap_of(self._grams(before, text.run), self._grams(text, text.run), names)

    def _grams(self, text: Documents, words: int) -> Grams:
        key = text.digest, words
        if key not in self._known:
            self._known[key] = grams_of(text.documents, words)
        return self._known[key]


def _words(document: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", document).lower())


def _hashes(document: str, run: int, known: dict[str, int]) -> numpy.ndarray:
    """A polynomial of the hashes of a run of words, modulo 2^64, for every word that begins one."""
    words = _words(document)
    count = len(words) - run + 1
    if count < 1:
        return numpy.zeros(0, numpy.uint64)
    for word in set(words) - known.keys():
        known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    numbers = numpy.array([known[word] for word in words], numpy.uint64)
    total = numpy.zeros(count, numpy.uint64)
    for place in range(run):
        total = total * _FACTOR + numbers[place : place + count]
    return total
