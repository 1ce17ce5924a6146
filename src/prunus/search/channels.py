"""What may be chosen where every channel stays or goes by itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from ..allocation import reach
from ..budget import Allocation
from ..calibration.placement import Placement
from ..calibration.stream import stream
from ..criteria import Criterion, saliency
from ..files import fingerprint
from ..granularity import Unstructured
from ..sites import Anatomy, ChannelSite, LinearSite
from ..surgery.write import read_weight
from .space import Array, Candidate, shifted

__all__ = ["ChannelSpace", "channel_scores"]


@dataclass(frozen=True, eq=False)
class ChannelSpace:
    """A candidate says of every site which channels go, as the bits of a whole number; the first channel is the highest bit. Whole
    bytes of bits are counted: above them is the level, in a store, of the matrices that the channels lie in, where they are not dense.

    Channels of equal weight, those of all MLPs or those of all attentions, are a kind. Of every kind as many go as an allocation
    takes from all its sites together, so that the budget is met whichever they are. The first candidate takes as many from every
    site as the allocation does, those that matter least.
    """

    sites: tuple[ChannelSite, ...]
    scores: tuple[Array, ...]  # of every site's channels: how much each matters
    counts: tuple[int, ...]  # of every site's channels: how many go at first

    levels: ClassVar[tuple[float, ...]] = (0.0, 1.0)  # sparsities of a channel

    @classmethod
    def build(cls, sites: Sequence[ChannelSite], first: Allocation, criterion: Criterion, model: Any, anatomy: Anatomy,
              tokens: Tensor, loss: Mapping[str, Any], placement: Placement = Placement(), batch: int = 4,
              watch: Callable[[int], None] = lambda done: None) -> "ChannelSpace":
        """What a channel matters is the sum of a criterion over its columns of the consumer, in the dense model; `loss` is what the
        criterion wants to know of it, by matrix."""
        scores = channel_scores(sites, criterion, model, anatomy, tokens, loss, placement, batch, watch)
        counts = tuple(round(reach(site, first[site.name], Unstructured("matrix")) * site.count) for site in sites)
        return cls(tuple(sites), tuple(scores[site.name] for site in sites), counts)

    @cached_property
    def kinds(self) -> tuple[tuple[int, ...], ...]:
        """The sites, by index, whose channels are of one weight."""
        found: dict[float, list[int]] = {}
        for index, site in enumerate(self.sites):
            found.setdefault(site.size / site.count, []).append(index)
        return tuple(map(tuple, found.values()))

    @cached_property
    def first(self) -> Candidate:
        """The channels that matter least, as many from every site as the allocation takes."""
        goes = numpy.zeros(self._edges[-1])
        for index, (scores, count) in enumerate(zip(self.scores, self.counts, strict=True)):
            goes[self._edges[index] + _descending(-scores)[:count]] = 1
        return self.candidate(goes)

    def leaning(self, steepness: float) -> Array:
        """Probabilities that channels go: the sigmoid of their standardised logarithmic scores, moved so that the border between
        what goes at first and what stays is the same at all sites, and as many of each kind go on average."""
        leanings = steepness * numpy.concatenate([*map(_below_border, self.scores, self.counts)])
        going = numpy.zeros_like(leanings)
        for members, needed in self._kinds:
            least, most = -100.0 - leanings[members].max(), 100.0 - leanings[members].min()
            for _ in range(60):
                middle = (least + most) / 2
                enough = _sigmoid(leanings[members] + middle).sum() >= needed
                least, most = (least, middle) if enough else (middle, most)
            going[members] = _sigmoid(leanings[members] + most)
        return self.projected(going)

    def projected(self, going: Array) -> Array:
        """The nearest probabilities with which as many of each kind go as must, on average."""
        found = going.copy()
        for members, needed in self._kinds:
            ones = numpy.ones(len(members))
            found[members] = shifted(going[members], 0 * ones, ones, ones, float(needed))
        return found

    def answer(self, going: Array) -> Candidate:
        """The channels that go most surely, as many of each kind as must."""
        goes = numpy.zeros(len(going))
        for sites, (_, needed) in zip(self.kinds, self._kinds, strict=True):
            portions = [self._portions(index, going) for index in sites]
            order, sizes, sureness = (numpy.concatenate(parts) for parts in zip(*portions, strict=True))
            surest = numpy.argsort(-sureness, kind="stable")
            taken = numpy.zeros(len(sizes), bool)
            taken[surest[: int(numpy.searchsorted(sizes[surest].cumsum(), needed)) + 1 if needed else 0]] = True
            goes[order[taken.repeat(sizes)]] = 1
        return self.candidate(goes)

    def candidate(self, goes: Array, levels: Sequence[int] = ()) -> Candidate:
        """As the bits of whole numbers; `goes` is 1 for every channel that goes, site after site. Without levels all are dense."""
        parts = numpy.split(goes > 0, self._edges[1:-1])
        return tuple(int.from_bytes(bytes([level]) + numpy.packbits(part).tobytes(), "big")
                     for part, level in zip(parts, levels or [0] * len(parts), strict=True))

    def level(self, candidate: Candidate, index: int) -> int:
        """Of a site's matrices, in a store."""
        return candidate[index] >> 8 * _bytes(self.sites[index])

    def gone(self, candidate: Candidate, index: int) -> int:
        """How many channels of a site go."""
        return self._bits(candidate, index).bit_count()

    def _bits(self, candidate: Candidate, index: int) -> int:
        return candidate[index] & (1 << 8 * _bytes(self.sites[index])) - 1

    def kept(self, candidate: Candidate, index: int) -> Bool[Tensor, "channels"]:
        """True for every channel of a site that stays."""
        site = self.sites[index]
        packed = numpy.frombuffer(self._bits(candidate, index).to_bytes(_bytes(site), "big"), numpy.uint8)
        return ~torch.from_numpy(numpy.unpackbits(packed, count=site.count)).bool()

    def rankings(self, candidate: Candidate) -> Mapping[str, Tensor]:
        """By site, how its consumer's columns rank: those that stay before those that go."""
        return {site.name: self.kept(candidate, index).float().repeat_interleave(site.width) for index, site in enumerate(self.sites)}

    def allocation(self, candidate: Candidate) -> dict[str, float]:
        """Site name to sparsity."""
        return {site.name: self.gone(candidate, index) / site.count for index, site in enumerate(self.sites)}

    def removed(self, candidate: Candidate) -> float:
        """Weights that go."""
        return sum(self.gone(candidate, index) * site.size / site.count for index, site in enumerate(self.sites))

    def mark(self, candidate: Candidate) -> str:
        """What a candidate is written down as: a hash, as it has a bit for every channel of the model."""
        return fingerprint(*map(hex, candidate))

    @cached_property
    def _edges(self) -> NDArray[numpy.int64]:
        """Where each site's channels begin among all, and where the last ones end."""
        return numpy.cumsum([0, *(site.count for site in self.sites)])

    @cached_property
    def _kinds(self) -> tuple[tuple[NDArray[numpy.int64], int], ...]:
        """The channels of each kind among all, and how many of them must go."""
        return tuple((numpy.concatenate([numpy.arange(*self._edges[index : index + 2]) for index in sites]),
                      sum(self.counts[index] for index in sites)) for sites in self.kinds)

    def _portions(self, index: int, going: Array) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64], Array]:
        """A site's channels among all, the surest to go first; the sizes of the portions in which they go, after each of which a
        multiple stays; and the mean probability of each portion."""
        site, start = self.sites[index], self._edges[index]
        order = start + _descending(going[start : start + site.count])
        begins = [0, *range(site.count % site.multiple or site.multiple, site.count, site.multiple)]
        sizes = numpy.diff([*begins, site.count])
        return order, sizes, numpy.add.reduceat(going[order], begins) / sizes


def channel_scores(sites: Sequence[ChannelSite], criterion: Criterion, model: Any, anatomy: Anatomy, tokens: Tensor,
                   loss: Mapping[str, Any], placement: Placement = Placement(), batch: int = 4,
                   watch: Callable[[int], None] = lambda done: None) -> dict[str, Array]:
    """By site, what every channel matters: the sum of a criterion over its columns of the consumer, in the dense model."""
    matrices = {site.name: site for site in anatomy.sites("linear") if isinstance(site, LinearSite)}
    ours = {site.consumer: site for site in sites}
    scores: dict[str, Array] = {}
    with torch.no_grad():
        for views in stream(model, anatomy, [matrices[name] for name in ours], tokens, criterion.needs, placement, batch):
            for view in views:
                site = ours[view.site.name]
                weight = read_weight(view.module).to(placement.device)
                values = saliency(criterion, weight, view.stats, loss.get(view.site.name))
                scores[site.name] = values.sum(0).view(site.count, site.width).sum(1).double().cpu().numpy()
                watch(len(scores))
    return scores


def _bytes(site: ChannelSite) -> int:
    """That hold a bit for every channel."""
    return (site.count + 7) // 8


def _descending(values: Array) -> NDArray[numpy.int64]:
    """The places of values, the largest first; of equal ones the last, as the first are kept."""
    found: NDArray[numpy.int64] = numpy.lexsort((-numpy.arange(len(values)), -values))
    return found


def _below_border(scores: Array, count: int) -> Array:
    """How far the logarithms of scores lie below the border between the `count` least and the others, in their deviations."""
    logs = numpy.log(numpy.maximum(scores, 1e-30 + 1e-12 * scores.max()))
    logs = (logs - logs.mean()) / (logs.std() or 1.0)
    ladder = numpy.sort(logs)
    ladder = numpy.concatenate([[ladder[0] - 1], ladder, [ladder[-1] + 1]])
    return (ladder[count] + ladder[count + 1]) / 2 - logs


def _sigmoid(values: Array) -> Array:
    return 1 / (1 + numpy.exp(-values))
