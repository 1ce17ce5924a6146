"""What the branches of a model do, and what it costs to be without them: to see before anything is decided."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .agreement import Agreement, agreements, counts, first_to_go, rank_correlation
from .anatomy import describe
from .budget import Budget
from .calibration.branches import branch_stats
from .calibration.placement import Placement, together
from .calibration.sample import Calibration
from .environment import available_bytes
from .errors import RecipeError
from .problem import check_weights
from .search.fitness import Fitness
from .search.space import Candidate, Query, Space, Trial
from .search.strategies.progressive import Progressive
from .sites import Anatomy, SublayerSite
from .stats import BranchStats
from .traits import predicts_next
from .widening import widened

__all__ = ["METRICS", "Analysis", "BranchRecord", "analyse"]

_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the block weights, for the curves
METRICS = ("influence", "relative", "impact", "impact_per_weight")


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
    agreements: tuple[Agreement, ...]  # of rankings on fewer sequences, and on other texts
    share: float  # of the block weights that goes, where agreements say what goes
    passes: float  # of one sequence through one block, computed for the divergences

    @property
    def correlations(self) -> dict[tuple[str, str], float]:
        """Spearman's rank correlation between every two metrics, over all branches."""
        values = {name: [getattr(record, name) for record in self.branches] for name in METRICS}
        return {(one, other): rank_correlation(values[one], values[other])
                for place, one in enumerate(METRICS) for other in METRICS[place + 1 :]}


@widened()
def analyse(model: Any, tokenizer: Any, calibration: Calibration | Sequence[Calibration] = Calibration(),
            text: Calibration | Sequence[Calibration] = Calibration("self", samples=8), *, share: float = 0.2,
            placement: Placement = Placement(), seed: int = 0, watch: Callable[[int, int], None] | None = None) -> Analysis:
    """Statistics of the stream on `calibration`, and divergences on `text`; of several texts, the others say how far the rankings
    found on the first hold elsewhere. Raises CorpusError, and RecipeError for a model that does not predict the next token, and for
    texts that cannot be told apart or looked at together."""
    if not predicts_next(model):
        raise RecipeError("analyse: impacts are divergences of the next token's prediction, which this model does not make.")
    if not 0 < share < 1:
        raise RecipeError(f"analyse: share = {share:g}: expected the fraction of the block weights that goes, in (0, 1).")
    check_weights(model)
    anatomy = describe(model)
    sites = tuple(site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite))
    seen = _drawn(calibration, model, tokenizer, seed, "calibration")
    looked = _drawn(text, model, tokenizer, seed + 1, "text")
    stats = {name: _stats(model, anatomy, tokens, placement) for name, tokens in seen.items()}
    looks = _Looks(model, anatomy, sites, looked, placement)
    try:
        impacts: dict[str, dict[str, list[float]]] = {name: {} for name in looked}
        for place in reversed(range(len(sites))):  # from the top, so that what is below is computed once
            for name in looked:
                impacts[name][sites[place].name] = looks.without([sites[place]], name)
            if watch:
                watch(len(sites) - place, len(sites))
        whole, lost = next(iter(stats.values())), next(iter(impacts.values()))
        records = tuple(_record(site, whole[max(whole)][site.name], statistics.fmean(lost[site.name])) for site in sites)
        curves = {name: _curve(looks, sites, records, order) for name, order in _ORDERS.items()}
        curves["both, progressive"] = _progressive(looks, sites)
        return Analysis(records, curves, _agreements(sites, stats, impacts, share), share, looks.passes)
    finally:
        looks.close()


def _drawn(texts: Calibration | Sequence[Calibration], model: Any, tokenizer: Any, seed: int, where: str) -> dict[str, Tensor]:
    """The sequences of every text, by the corpus and the split where it is not the usual one."""
    found: dict[str, Tensor] = {}
    for item in (texts,) if isinstance(texts, Calibration) else texts:
        name = item.corpus if item.split == "train" else f"{item.corpus} {item.split}"
        if name in found:
            raise RecipeError(f"analyse: {where} '{name}' is named twice. Name different corpora or splits.")
        found[name] = item.tokens(tokenizer, model, seed, where)
    if len({tokens.shape[1] for tokens in found.values()}) > 1:
        raise RecipeError(f"analyse: {where}: its texts have sequences of {', '.join(str(tokens.shape[1]) for tokens in found.values())} "
                          "tokens. Give all the same length.")
    return found


def _stats(model: Any, anatomy: Anatomy, tokens: Tensor, placement: Placement) -> dict[int, dict[str, BranchStats]]:
    """Of the first 1, 2, 4, … sequences and of all; each is run once."""
    found: dict[int, dict[str, BranchStats]] = {}
    begin = 0
    for end in counts(len(tokens)):
        part = branch_stats(model, anatomy, tokens[begin:end], placement, together(tokens.shape[1]))
        before = found.get(begin, part)
        found[end] = {name: before[name].joined(part[name], begin / end) for name in part}
        begin = end
    return found


class _Looks:
    """Divergences without some branches, sequence by sequence, so that a part of a text is known with the whole."""

    def __init__(self, model: Any, anatomy: Anatomy, sites: tuple[SublayerSite, ...], texts: Mapping[str, Tensor],
                 placement: Placement) -> None:
        self.sites = sites
        self._rows: dict[str, range] = {}
        for name, tokens in texts.items():
            begin = sum(map(len, self._rows.values()))
            self._rows[name] = range(begin, begin + len(tokens))
        self._total = sum(map(len, self._rows.values()))
        self._fitness = Fitness(model, anatomy, Space(sites, (0.0, 1.0), Budget(0.5)), None, torch.cat([*texts.values()]),
                                placement=placement, batch=1, memory=available_bytes() // 4)
        self.close = self._fitness.close

    @property
    def passes(self) -> float:
        """Of one sequence through one block, so far."""
        return self._fitness.blocks * self._total

    def at(self, candidate: Candidate, text: str = "") -> list[float]:
        """By sequence of a text, or of the first."""
        rows = self._rows[text] if text else next(iter(self._rows.values()))
        return [trial.value for trial in self._fitness([Query(candidate, 1 / self._total, row, partial=True) for row in rows])]

    def without(self, gone: Sequence[SublayerSite], text: str = "") -> list[float]:
        return self.at(tuple(int(site in gone) for site in self.sites), text)


def _record(site: SublayerSite, stats: BranchStats, impact: float) -> BranchRecord:
    return BranchRecord(site.name, site.block, site.kind, site.size, stats.before, stats.added, stats.relative, 1 - stats.cosine,
                        1 - stats.block, impact, 1e6 * impact / site.size)


def _agreements(sites: Sequence[SublayerSite], stats: Mapping[str, Mapping[int, Mapping[str, BranchStats]]],
                impacts: Mapping[str, Mapping[str, Sequence[float]]], share: float) -> tuple[Agreement, ...]:
    sizes = [site.size for site in sites]
    turns = {text: {count: [1 - by_site[site.name].cosine for site in sites] for count, by_site in by_count.items()}
             for text, by_count in stats.items()}
    lost = {text: {count: [statistics.fmean(by_site[site.name][:count]) for site in sites] for count in counts(len(by_site[sites[0].name]))}
            for text, by_site in impacts.items()}
    per_weight = {text: {count: [value / size for value, size in zip(values, sizes, strict=True)] for count, values in by_count.items()}
                  for text, by_count in lost.items()}
    return tuple(row for metric, found in (("influence", turns), ("impact", lost), ("impact_per_weight", per_weight))
                 for row in agreements(metric, found, sizes, share))


_ORDERS: dict[str, tuple[tuple[str, ...], str]] = {  # curve: (kinds that may go, metric that orders them)
    "attentions, by impact": (("attention",), "impact"), "MLPs, by impact": (("mlp",), "impact"),
    "both, by impact": (("attention", "mlp"), "impact"), "both, by impact per weight": (("attention", "mlp"), "impact_per_weight"),
    "both, by influence": (("attention", "mlp"), "influence"),
}


def _curve(looks: _Looks, sites: Sequence[SublayerSite], records: Sequence[BranchRecord],
           order: tuple[tuple[str, ...], str]) -> tuple[tuple[float, float], ...]:
    """What is lost at some shares, as far as this kind reaches and some branch is left; all chosen once, on the dense model."""
    kinds, metric = order
    able = [place for place, record in enumerate(records) if record.kind in kinds]
    values, sizes, total = [getattr(records[place], metric) for place in able], [sites[place].size for place in able], _size(sites)
    found = [(0.0, 0.0)]
    for share in _SHARES:
        gone = [sites[able[place]] for place in first_to_go(values, sizes, share * total / sum(sizes))]
        reached = _size(gone) / total
        if reached > found[-1][0] and len(gone) < len(able):
            found.append((reached, statistics.fmean(looks.without(gone))))
    return tuple(found)


def _progressive(looks: _Looks, sites: tuple[SublayerSite, ...]) -> tuple[tuple[float, float], ...]:
    """What is lost after every removal, when all that may be the least per weight are looked at again (the search `progressive`)."""
    strategy, space = Progressive(), Space(sites, (0.0, 1.0), Budget(1 - _SHARES[-1]))
    state, found = strategy.init(space, space.nearest({site.name: 0.0 for site in sites}), 0), [(0.0, 0.0)]
    while queries := strategy.ask(state):
        state = strategy.tell(state, [Trial(query.candidate, statistics.fmean(looks.at(query.candidate))) for query in queries])
        if state.here and (share := space.removed(state.here.candidate) / _size(sites)) > found[-1][0]:
            found.append((share, state.here.value))
    return tuple(found)


def _size(sites: Sequence[SublayerSite]) -> int:
    return sum(site.size for site in sites)
