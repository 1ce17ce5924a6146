"""An analysis of branches as files: tables, pictures and a page that shows them."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from .analysis import METRICS, Analysis, BranchRecord
from .errors import MissingExtra
from .figures import drawn, table_of

__all__ = ["PICTURES", "files_of"]

PICTURES = ("streams.png", "impacts.png", "curves.png", "agreement.png")  # where `prunus[plots]` is installed
_COLUMNS = {"metric": "metric", "text": "text", "sequences": "sequences", "compared with": "against", "its sequences": "of",
            "rank correlation": "correlation", "the same goes": "overlap"}


def files_of(found: Analysis) -> dict[str, bytes]:
    """File name to content: tables as CSV and Markdown, and pictures where `prunus[plots]` is installed."""
    names = [field.name for field in fields(BranchRecord)]
    files = {"branches.csv": table_of(names, ([getattr(record, name) for name in names] for record in found.branches)),
             "curves.csv": table_of(["who goes", "share of block weights", "divergence"],
                                    ((name, *point) for name, points in found.curves.items() for point in points)),
             "agreement.csv": table_of(list(_COLUMNS), ([getattr(row, name) for name in _COLUMNS.values()] for row in found.agreements))}
    pictures = dict(zip(PICTURES, (_streams, _impacts, _curves, _agreement), strict=True))
    try:
        files |= {name: drawn(lambda axes, draw=draw: draw(axes, found)) for name, draw in pictures.items()}
    except MissingExtra:
        pictures = {}
    return files | {"README.md": _page(found, tuple(pictures)).encode()}


def _kinds(found: Analysis) -> list[tuple[str, list[BranchRecord]]]:
    return [(kind, [record for record in found.branches if record.kind == kind]) for kind in ("attention", "mlp")]


def _streams(axes: Any, found: Analysis) -> None:
    for kind, records in _kinds(found):
        blocks = [record.block for record in records]
        axes.plot(blocks, [record.added for record in records], marker="o", markersize=3, label=f"added by {kind}")
        axes.plot(blocks, [record.before for record in records], linestyle="--", linewidth=1, label=f"stream before {kind}")
    axes.set(xlabel="block", ylabel="root mean square norm", yscale="log", title="The stream, and what branches add")


def _impacts(axes: Any, found: Analysis) -> None:
    for kind, records in _kinds(found):
        axes.plot([record.block for record in records], [record.impact for record in records], marker="o", markersize=3, label=kind)
    axes.set(xlabel="block", ylabel="divergence, nats per token", yscale="log", title="Without one branch")


def _curves(axes: Any, found: Analysis) -> None:
    for name, points in found.curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel="share of the block weights gone", ylabel="divergence, nats per token", title="Without several")


def _agreement(axes: Any, found: Analysis) -> None:
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in found.agreements:
        if row.text == row.against:
            lines.setdefault((row.metric, row.text), []).append((row.sequences, row.overlap))
    for (metric, text), points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"{metric.replace('_', ' ')}, {text}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="sequences", ylabel="go by both, of those that go by either", ylim=(0, 1.05),
             title=f"The choice of branches at {found.share:.0%}, beside that of all sequences")


def _page(found: Analysis, pictures: Sequence[str]) -> str:
    words = {name: name.replace("_", " ") for name in METRICS}
    lines = ["# Branches", "", "| branch | weights | stream before | added | influence | block influence | impact | per million weights |",
             "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {record.site} | {record.weights:,} | {record.before:.3g} | {record.added:.3g} | {record.influence:.4f} | "
              f"{record.block_influence:.4f} | {record.impact:.4f} | {record.impact_per_weight:.4f} |" for record in found.branches]
    lines += ["", "Rank correlation of metrics over all branches (Spearman):", "", "| | | |", "|---|---|---|"]
    lines += [f"| {words[one]} | {words[other]} | {value:.2f} |" for (one, other), value in found.correlations.items()]
    lines += ["", "Curves by impact and the progressive one choose on the text that they are measured on; on other text they gain less.",
              "", "The same metrics on fewer sequences, and on other texts: rank correlation, and, of the branches that go first at "
              f"{found.share:.0%} of the block weights by one or the other, the share that goes by both. The first sequences are among all "
              "of them.", "", f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    lines += [f"| {words[row.metric]} | {row.text} | {row.sequences} | {row.against} | {row.of} | {row.correlation:.2f} | "
              f"{row.overlap:.2f} |" for row in found.agreements]
    lines += ["", f"The divergences took {found.passes:,.0f} passes of a sequence through a block."]
    return "\n".join(lines + [line for name in pictures for line in ("", f"![{name.partition('.')[0]}]({name})")]) + "\n"
