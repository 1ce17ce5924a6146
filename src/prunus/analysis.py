"""What the branches of a model do, and what it costs to be without them: to see before anything is decided."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from .anatomy import describe
from .budget import Budget
from .calibration.branches import branch_stats
from .calibration.placement import Placement, together
from .calibration.sample import Calibration
from .environment import available_bytes
from .errors import MissingExtra, RecipeError
from .figures import drawn, table_of
from .search.fitness import Fitness
from .search.space import Query, Space
from .sites import SublayerSite
from .traits import predicts_next

__all__ = ["Analysis", "BranchRecord", "analyse", "files_of", "rank_correlation"]

_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the block weights, for the curves
_METRICS = ("influence", "relative", "impact", "impact_per_weight")


@dataclass(frozen=True)
class BranchRecord:
    """One residual branch."""

    site: str
    block: int
    kind: str  # attention or mlp
    weights: int
    before: float  # root mean square norm of the stream before it
    added: float  # and of what it adds
    relative: float  # mean over tokens of the branch's norm over the stream's
    influence: float  # 1 - cos(stream before, stream behind)
    block_influence: float  # the same of its whole block
    impact: float  # divergence from the dense model without this branch alone, nats per token
    impact_per_weight: float  # nats per token and million weights


@dataclass(frozen=True)
class Analysis:
    """All branches, and what is lost when the least of a kind go together."""

    branches: tuple[BranchRecord, ...]
    curves: Mapping[str, tuple[tuple[float, float], ...]]  # who goes first: (share of the block weights gone, divergence)

    @property
    def correlations(self) -> dict[tuple[str, str], float]:
        """Spearman's rank correlation between every two metrics, over all branches."""
        values = {name: [getattr(record, name) for record in self.branches] for name in _METRICS}
        return {(one, other): rank_correlation(values[one], values[other])
                for place, one in enumerate(_METRICS) for other in _METRICS[place + 1 :]}


def analyse(model: Any, tokenizer: Any, calibration: Calibration = Calibration(), text: Calibration = Calibration("self", samples=8), *,
            placement: Placement = Placement(), seed: int = 0, watch: Callable[[int, int], None] | None = None) -> Analysis:
    """Statistics of the stream on `calibration`, and divergences on `text`. Raises CorpusError, and RecipeError for a model that
    does not predict the next token."""
    if not predicts_next(model):
        raise RecipeError("analyse: impacts are divergences of the next token's prediction, which this model does not make.")
    anatomy = describe(model)
    sites = tuple(site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite))
    tokens = calibration.tokens(tokenizer, model, seed)
    stats = branch_stats(model, anatomy, tokens, placement, together(tokens.shape[1]))
    looked = text.tokens(tokenizer, model, seed + 1)
    space = Space(sites, (0.0, 1.0), Budget(0.5))
    fitness = Fitness(model, anatomy, space, None, looked, placement=placement, batch=together(looked.shape[1]),
                      memory=available_bytes() // 4)
    try:
        impacts: dict[str, float] = {}
        for place in reversed(range(len(sites))):  # from the top, so that what is below is computed once
            impacts[sites[place].name] = _without(fitness, sites, [sites[place]])
            if watch:
                watch(len(impacts), len(sites))
        records = tuple(_record(site, stats[site.name], impacts[site.name]) for site in sites)
        return Analysis(records, {name: _curve(fitness, sites, records, order) for name, order in _ORDERS.items()})
    finally:
        fitness.close()


def _without(fitness: Fitness, sites: Sequence[SublayerSite], gone: Sequence[SublayerSite]) -> float:
    return fitness([Query(tuple(int(site in gone) for site in sites), partial=True)])[0].value


def _record(site: SublayerSite, stats: Any, impact: float) -> BranchRecord:
    kind = "attention" if site.cache or "att" in site.name.rpartition(".")[2] else "mlp"
    return BranchRecord(site.name, site.block, kind, site.size, stats.before, stats.added, stats.relative, 1 - stats.cosine,
                        1 - stats.block, impact, 1e6 * impact / site.size)


_ORDERS: dict[str, tuple[tuple[str, ...], str]] = {  # curve: (kinds that may go, metric that orders them)
    "attentions, by impact": (("attention",), "impact"), "MLPs, by impact": (("mlp",), "impact"),
    "both, by impact": (("attention", "mlp"), "impact"), "both, by impact per weight": (("attention", "mlp"), "impact_per_weight"),
    "both, by influence": (("attention", "mlp"), "influence"),
}


def _curve(fitness: Fitness, sites: Sequence[SublayerSite], records: Sequence[BranchRecord],
           order: tuple[tuple[str, ...], str]) -> tuple[tuple[float, float], ...]:
    """What is lost at some shares, as far as this kind reaches and some branch is left; all chosen once, on the dense model."""
    kinds, metric = order
    queue = sorted((record for record in records if record.kind in kinds), key=lambda record: getattr(record, metric))
    total, found, gone = sum(site.size for site in sites), [(0.0, 0.0)], 0
    for share in _SHARES:
        while gone < len(queue) and sum(record.weights for record in queue[:gone]) < share * total:
            gone += 1
        names = {record.site for record in queue[:gone]}
        reached = sum(record.weights for record in queue[:gone]) / total
        if reached > found[-1][0] and len(names) < len(queue):
            found.append((reached, _without(fitness, sites, [site for site in sites if site.name in names])))
    return tuple(found)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, from -1 to 1; equal values share the mean of their ranks."""
    first, second = (_ranks(torch.tensor(values, dtype=torch.float64)) for values in (one, other))
    first, second = first - first.mean(), second - second.mean()
    size = float(first.norm() * second.norm())
    return float(first @ second) / size if size else math.nan


def _ranks(values: torch.Tensor) -> torch.Tensor:
    return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2


def files_of(found: Analysis) -> dict[str, bytes]:
    """File name to content: tables as CSV and Markdown, and pictures where `prunus[plots]` is installed."""
    names = [field.name for field in fields(BranchRecord)]
    files = {"branches.csv": table_of(names, ([getattr(record, name) for name in names] for record in found.branches)),
             "curves.csv": table_of(["who goes", "share of block weights", "divergence"],
                                    ((name, *point) for name, points in found.curves.items() for point in points))}
    pictures = {"streams.png": _streams, "impacts.png": _impacts, "curves.png": _curves}
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
    axes.set(xlabel="share of the block weights gone", ylabel="divergence, nats per token", title="Without several, all chosen at once")


def _page(found: Analysis, pictures: Sequence[str]) -> str:
    words = {name: name.replace("_", " ") for name in _METRICS}
    lines = ["# Branches", "", "| branch | weights | stream before | added | influence | block influence | impact | per million weights |",
             "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {record.site} | {record.weights:,} | {record.before:.3g} | {record.added:.3g} | {record.influence:.4f} | "
              f"{record.block_influence:.4f} | {record.impact:.4f} | {record.impact_per_weight:.4f} |" for record in found.branches]
    lines += ["", "Rank correlation of metrics over all branches (Spearman):", "", "| | | |", "|---|---|---|"]
    lines += [f"| {words[one]} | {words[other]} | {value:.2f} |" for (one, other), value in found.correlations.items()]
    return "\n".join(lines + [line for name in pictures for line in ("", f"![{name.partition('.')[0]}]({name})")]) + "\n"
