"""What two texts have in common, as the share of runs of 13 words of the one that stand in the other; no text is kept.

Runs of 13 words are those by which GPT-3's authors looked for test text in training text (Brown et al. 2020, appendix C). Words are
runs of letters and digits of a document after Unicode's NFKC and in lower case; what is between them (spaces, line breaks,
punctuation) does not count, and no run goes over the end of a document.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

__all__ = ["WORDS", "Grams", "Overlap", "grams_of", "overlap_of"]

WORDS = 13  # in a run
_MOST = 2**26  # characters of a text that are looked at
_WORD = re.compile(r"[^\W_]+")
_FACTOR = numpy.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a run is shifted out


@dataclass(frozen=True)
class Grams:
    """The hashes of all runs of 13 words of a text, in its order."""

    hashes: numpy.ndarray
    begins: tuple[tuple[int, int], ...]  # (where a document's hashes begin, which document of the text it is)

    def place(self, index: int) -> tuple[int, int]:
        """The document of a run and the word that it begins with, both from 0."""
        begin, document = max((pair for pair in self.begins if pair[0] <= index), default=(0, 0))
        return document, index - begin


@dataclass(frozen=True)
class Overlap:
    """How much of one text stands in another, which was looked at before."""

    before: str  # "calibration text (c4 train)"
    text: str  # "report text (wikitext2 test)"
    runs: int  # of 13 words, in the text
    shared: int  # of these that stand in the text before
    example: tuple[int, int] | None  # the first shared one: the document of the text, and the word in it, both from 0

    @property
    def share(self) -> float:
        """Of the runs of the text."""
        return self.shared / self.runs if self.runs else 0.0

    def __str__(self) -> str:
        where = f", first at word {self.example[1] + 1} of document {self.example[0] + 1}" if self.example else ""
        runs = f"{self.shared:,} of {self.runs:,} runs of {WORDS} words"
        return f"{self.share:.2%} of the {self.text} ({runs}) stand in the {self.before}{where}"


def grams_of(documents: Sequence[str]) -> Grams:
    """Of a text, or of its first 64 million characters; 0.1 s per million."""
    known: dict[str, int] = {}
    hashes, begins, total, left = [numpy.zeros(0, numpy.uint64)], [], 0, _MOST
    for number, document in enumerate(documents):
        if left <= 0:
            break
        found = _hashes(document[:left], known)
        left -= len(document)
        if len(found):
            hashes.append(found)
            begins.append((total, number))
            total += len(found)
    return Grams(numpy.concatenate(hashes), tuple(begins))


def overlap_of(before: Grams, text: Grams, names: tuple[str, str] = ("other", "text")) -> Overlap:
    """How much of `text` stands in what was looked at before; `names` are theirs, in this order."""
    shared = numpy.isin(text.hashes, numpy.unique(before.hashes))
    first = text.place(int(shared.argmax())) if shared.any() else None
    return Overlap(*names, len(shared), int(shared.sum()), first)


def _hashes(document: str, known: dict[str, int]) -> numpy.ndarray:
    """A polynomial of the hashes of 13 words, modulo 2^64, for every word that begins such a run."""
    words = _WORD.findall(unicodedata.normalize("NFKC", document).lower())
    count = len(words) - WORDS + 1
    if count < 1:
        return numpy.zeros(0, numpy.uint64)
    for word in set(words) - known.keys():
        known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    numbers = numpy.array([known[word] for word in words], numpy.uint64)
    total = numpy.zeros(count, numpy.uint64)
    for place in range(WORDS):
        total = total * _FACTOR + numbers[place : place + count]
    return total
