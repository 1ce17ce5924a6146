"""A comparison as a page: sections of paragraphs, tables and charts, which every form of the report writes in its own way."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cell", "Chart", "Code", "Page", "Part", "Section", "Table", "Text", "aligned"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    notes: tuple[str, ...] = ()  # smaller lines below it
    best: bool = False  # in bold
    marked: tuple[bool, ...] = ()  # by word of the text: whether it is marked; none: no word is


@dataclass(frozen=True)
class Table:
    """Rows in groups; the first cell of a row is its heading."""

    caption: str
    head: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[Cell, ...], ...]], ...]  # a heading, which may be empty, and its rows


@dataclass(frozen=True)
class Chart:
    """A drawing, and the table of what is drawn."""

    title: str
    told: str  # what it shows, for who does not see it
    svg: str
    table: Table


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Commands."""

    text: str


Part = Table | Chart | Text | Code


@dataclass(frozen=True)
class Section:
    """What can be folded away."""

    title: str
    parts: tuple[Part, ...]
    opened: bool = True  # at first


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    flags: tuple[str, ...]  # before anything else
    lead: tuple[str, ...]  # what it is about, in a few lines
    sections: tuple[Section, ...]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines for a terminal, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
