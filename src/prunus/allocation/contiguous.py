"""Take the run of neighbouring blocks whose input and output point the most alike (Gromov et al. 2024)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, ClassVar

from torch import Tensor

from ..budget import Allocation, Budget
from ..errors import RecipeError
from ..granularity import Granularity
from ..sites import Kind, Site
from ..stats import BranchStats, LossNeeds, LossStats, Needs

__all__ = ["Contiguous"]


@dataclass(frozen=True)
class Contiguous:
    """Of all runs of n blocks, the one whose input x and output y, of the last token of every sequence, have the least angular
    distance arccos(cos(x, y)) / pi, in the mean over sequences, goes (section 3 of the paper). From every start, n is the least
    number with which the budget is met: one number where blocks are alike.

    Remembers one vector per sequence at the entry of every block and behind the last, in float32: 4 (blocks + 1) sequences width
    bytes. The last blocks are kept only as far as their distance keeps them.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("sublayer",)  # it shares out whole branches
    needs: ClassVar[Needs] = "nothing"
    loss_needs: ClassVar[LossNeeds | None] = None

    def measure(self, site: Site, weight: Tensor, stats: BranchStats, loss: LossStats | None) -> tuple[Tensor, Tensor]:
        """The directions of the last tokens before and behind the branch's block."""
        return stats.entry, stats.exit

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        ordered = sorted(sites, key=lambda site: site.block)
        blocks = [list(group) for _, group in groupby(ordered, key=lambda site: site.block)]
        none = {site.name: 0.0 for site in sites}
        if budget.met(sites, none):
            return none
        found: list[tuple[float, Allocation]] = []
        for start in range(len(blocks)):
            for stop in _stops(blocks, start):
                run = none | {site.name: 1.0 for block in blocks[start:stop] for site in block}
                if budget.met(sites, run):
                    found.append((_distance(measured[blocks[start][0].name][0], measured[blocks[stop - 1][0].name][1]), run))
                    break
        if not found:
            raise RecipeError(f"allocation 'contiguous': no run of neighbouring blocks meets the budget {budget.limit:g}. "
                              "Leave fewer blocks alone (skip), or use influence.")
        return min(found, key=lambda run: run[0])[1]


def _stops(blocks: Sequence[Sequence[Site]], start: int) -> list[int]:
    """Where a run from `start` may end: before the first block that is left alone."""
    depths = [block[0].block for block in blocks[start:]]
    gaps = [place for place, (one, other) in enumerate(pairwise(depths), 1) if other > one + 1]
    return list(range(start + 1, start + (gaps[0] if gaps else len(depths)) + 1))


def _distance(before: Tensor, behind: Tensor) -> float:
    """Mean angle between unit vectors over pi; by both sides of the rhombus, as arccos loses what is near 0."""
    before, behind = before.double(), behind.double()
    angle = 2 * (before - behind).norm(dim=-1).atan2((before + behind).norm(dim=-1))
    return float(angle.mean()) / math.pi
