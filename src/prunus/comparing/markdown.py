"""The report as Markdown: every section, with the tables of the charts in the place of these."""

import re

from .page import Cell, Chart, Code, Page, Part, Table, Text

__all__ = ["as_markdown", "escaped", "quoted", "table_lines"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def as_markdown(page: Page) -> str:
    """The whole file."""
    flags = ["\n>\n".join(map(quoted, page.flags))] if page.flags else []
    blocks = [f"# {escaped(page.title)}", *flags, *map(escaped, page.lead)]
    for section in page.sections:
        blocks += [f"## {section.title}", *(block for part in section.parts for block in _blocks(part))]
    return "\n\n".join(blocks) + "\n"


def quoted(flag: str) -> str:
    """A warning, up to its first colon in bold; names may have colons without a space."""
    before, colon, after = flag.partition(": ")
    return f"> **{escaped(before)}{colon.strip()}** {escaped(after)}".rstrip()


def _blocks(part: Part) -> list[str]:
    match part:
        case Text(text):
            return [escaped(text)]
        case Code(text):
            return [f"```\n{text}\n```"]
        case Table():
            return [f"**{escaped(part.caption)}**", table_lines(part)]
        case Chart():
            return [f"**{escaped(part.title)}**", escaped(part.told), table_lines(part.table)]


def table_lines(table: Table) -> str:
    """One table; the heading of a group is a row of its own."""
    rows = [_line([escaped(name) for name in table.head]), _line(["---"] * len(table.head))]
    for title, group in table.groups:
        rows += [_line([f"*{escaped(title)}*", *([""] * (len(table.head) - 1))])] if title else []
        rows += [_line([_cell(cell) for cell in row]) for row in group]
    return "\n".join(rows)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    if cell.marked:
        words = zip(cell.text.split(" "), cell.marked, strict=True)
        text = " ".join(f"**{escaped(word)}**" if marked else escaped(word) for word, marked in words).replace("** **", " ")
    if cell.best:
        text = f"**{text}**"
    return "<br>".join([text, *map(escaped, cell.notes)])


def escaped(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
