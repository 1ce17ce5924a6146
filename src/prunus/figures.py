"""Pictures of a result, each with the numbers it is drawn from: how much every site gives, and what a search found when."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from .budget import Allocation
from .errors import MissingExtra
from .search.plan import SearchRecord

__all__ = ["drawn", "figures", "place", "table_of"]


def figures(allocations: Sequence[Allocation], searches: Sequence[SearchRecord]) -> dict[str, bytes]:
    """File name to content. CSV always; PNG where there is something to see and `prunus[plots]` is installed."""
    found: dict[str, bytes] = {"allocation.csv": table_of(
        ["stage", "site", "block", "kind", "sparsity"],
        ((stage, site, *place(site), share) for stage, shares in enumerate(allocations) for site, share in shares.items()))}
    if searches:
        found["search.csv"] = table_of(
            ["search", "evaluations", "seconds", "best on search text", "the same on held-out text"],
            ((index, moment.spent, round(moment.seconds, 3), moment.value, moment.held_out)
             for index, search in enumerate(searches) for moment in search.curve))
    try:
        for stage, shares in enumerate(allocations):
            if len(set(shares.values())) > 1:
                found[f"allocation-{stage}.png"] = _by_depth(shares)
        for index, search in enumerate(searches):
            found[f"search-{index}.png"] = _learning(search)
    except MissingExtra:
        pass  # the numbers are there
    return found


def place(site: str) -> tuple[int, str]:
    """The depth of a site, and what is the same in all blocks, from its path."""
    before, _, after = site.partition(".")
    while after and not before.isdigit():
        before, _, after = after.partition(".")
    return (int(before), after) if before.isdigit() else (0, site)


def table_of(header: list[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _by_depth(shares: Allocation) -> bytes:
    kinds: dict[str, list[tuple[int, float]]] = {}
    for site, share in shares.items():
        depth, kind = place(site)
        kinds.setdefault(kind, []).append((depth, share))

    def draw(axes: Any) -> None:
        for (kind, points), marker in zip(kinds.items(), "os^vDPX*<>" * len(kinds), strict=False):
            axes.plot(*zip(*sorted(points), strict=True), marker=marker, markersize=4, linewidth=1, label=kind)
        axes.set(xlabel="block", ylabel="sparsity", title="How much each site gives")

    return drawn(draw)


def _learning(search: SearchRecord) -> bytes:
    curve = search.curve
    spent = [*(moment.spent for moment in curve), search.spent]

    def draw(axes: Any) -> None:
        seen, unseen = ([getattr(moment, name) for moment in curve] for name in ("value", "held_out"))
        for label, values in (("search text", seen), ("held-out text", unseen)):
            axes.step(spent, [*values, values[-1]], where="post", label=f"best on search text, valued on {label}")
        axes.axhline(search.first, color="grey", linestyle="--", linewidth=1, label="the allocator's answer, search text")
        axes.set(xlabel="looks at the search text", ylabel=f"{search.objective}, {search.unit}", title=f"Search by {search.strategy}")

    return drawn(draw)


def drawn(draw: Any) -> bytes:
    """A PNG; the figure is made without the library's global state, and has no date in it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("plots", "plots") from None
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4 if len(axes.lines) > 4 else 1)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
