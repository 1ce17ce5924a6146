"""The report as one HTML file that needs no network: charts are drawings within it, and its style is page.css."""

import re
from html import escape
from importlib.resources import files

from .page import Cell, Chart, Code, Page, Part, Section, Table, Text

__all__ = ["as_html"]

_ALONE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # a browser keeps the page from the network
# What is folded away is not printed by every browser; and a link to a section opens it.
_SCRIPT = """const all = (open) => document.querySelectorAll("details").forEach((one) => { one.open = open(one); });
addEventListener("beforeprint", () => all((one) => { one.dataset.was = one.open ? "1" : ""; return true; }));
addEventListener("afterprint", () => all((one) => one.dataset.was === "1"));
const follow = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target) { target.querySelector("details").open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", follow);
follow();"""


def as_html(page: Page) -> str:
    """The whole file."""
    style = files("prunus.comparing").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{_ident(section)}">{escape(section.title)}</a></li>' for section in page.sections)
    flags = f'<div class="flags" role="note" aria-label="Warnings">{"".join(map(_flag, page.flags))}</div>' if page.flags else ""
    lead = "".join(f"<p>{escape(line)}</p>" for line in page.lead)
    return "\n".join([
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{_ALONE}">',
        f"<title>{escape(page.title)}</title>", f"<style>\n{style}</style>", "</head>", "<body>",
        '<a class="skip" href="#content">Skip to the results</a>', f"<header><h1>{escape(page.title)}</h1></header>",
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>', f'<main id="content">{flags}<div class="lead">{lead}</div>',
        *(_section(section) for section in page.sections), "</main>", "<footer><p>Compared with Prunus.</p></footer>",
        f"<script>\n{_SCRIPT}\n</script>", "</body>", "</html>", ""])


def _flag(flag: str) -> str:
    before, colon, after = flag.partition(": ")
    return f"<p><strong>{escape(before)}{colon}</strong>{escape(after)}</p>"


def _ident(section: Section) -> str:
    return re.sub(r"\W+", "-", section.title.lower())


def _section(section: Section) -> str:
    parts = [_part(part, f"{_ident(section)}-{place}") for place, part in enumerate(section.parts)]
    opened = " open" if section.opened else ""
    charts = ' class="charts"' if all(isinstance(part, Chart) for part in section.parts) else ""
    return (f'<section id="{_ident(section)}"><details{opened}><summary><h2>{escape(section.title)}</h2></summary>'
            f"<div{charts}>{''.join(parts)}</div></details></section>")


def _part(part: Part, ident: str) -> str:
    match part:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Code(text):
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        case Table():
            return _table(part, ident)
        case Chart():
            return (f'<figure>{part.svg}<figcaption>{escape(part.title)}</figcaption>'
                    f'<details class="numbers"><summary>The numbers</summary>{_table(part.table, ident)}</details></figure>')


def _table(table: Table, ident: str) -> str:
    """In a frame of its own that scrolls, by keys too, where the page is too narrow."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in table.head)
    body = []
    for title, rows in table.groups:
        wide = f'<th scope="rowgroup" colspan="{len(table.head)}"><span>{escape(title)}</span></th>'
        heading = f'<tr class="group">{wide}</tr>' if title else ""
        body.append(f"<tbody>{heading}{''.join(map(_row, rows))}</tbody>")
    words = ' class="words"' if len(table.head) == 2 else ""
    return (f'<div class="frame" tabindex="0" role="region" aria-labelledby="{ident}"><table{words}>'
            f'<caption id="{ident}">{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>{"".join(body)}</table></div>')


def _row(row: tuple[Cell, ...]) -> str:
    first, *others = row
    cells = "".join(f'<td{" class=best" if cell.best else ""}>{_cell(cell)}</td>' for cell in others)
    return f'<tr><th scope="row">{_cell(first)}</th>{cells}</tr>'


def _cell(cell: Cell) -> str:
    text = _words(cell) if cell.marked else escape(cell.text).replace(" %", "&nbsp;%")
    if cell.best:
        text = f"<strong>{text}</strong>"
    return text + "".join(f"<small>{escape(note)}</small>" for note in cell.notes)


def _words(cell: Cell) -> str:
    """Words that follow each other and are marked share one mark."""
    parts: list[str] = []
    for word, marked in zip(cell.text.split(" "), cell.marked, strict=True):
        if marked and parts and parts[-1].endswith("</mark>"):
            parts[-1] = f"{parts[-1].removesuffix('</mark>')} {escape(word)}</mark>"
        else:
            parts.append(f"<mark>{escape(word)}</mark>" if marked else escape(word))
    return " ".join(parts)
