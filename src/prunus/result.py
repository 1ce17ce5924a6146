"""Results: the pruned model and everything that was measured on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .budget import Allocation
from .evaluation import Measurement
from .recipe import Recipe
from .search.plan import SearchRecord

__all__ = ["Pruned", "Report", "Shares", "SiteRecord"]


@dataclass(frozen=True)
class SiteRecord:
    """What happened at one site."""

    site: str
    asked: float  # sparsity
    reached: float  # sparsity, counted on the mask
    error: float | None  # relative output error on calibration data; None when no Gram was collected
    seconds: float  # reading, solving, measuring and writing


@dataclass(frozen=True)
class Report:
    """What was done, what it cost and what is left."""

    recipe: Recipe
    allocation: tuple[Allocation, ...]  # one per stage
    sites: tuple[SiteRecord, ...]
    sparsity: float  # of all matrices of the blocks: weights that are 0 or gone, counted in the pruned model
    parameters: tuple[int, int]  # of the whole dense model, and of the pruned one
    before: tuple[Measurement, ...]  # of the dense model
    after: tuple[Measurement, ...]
    prompts: tuple[str, ...]
    answers_before: tuple[str, ...]
    answers_after: tuple[str, ...]
    seconds: Mapping[str, float]  # by stage of the work
    environment: Mapping[str, str]
    notes: tuple[str, ...] = ()  # what a reader should know
    searches: tuple[SearchRecord, ...] = ()  # of the stages that search


@dataclass(frozen=True)
class Shares:
    """How much each site is to give: decided, and not taken yet."""

    recipe: Recipe
    allocation: Allocation
    search: SearchRecord | None
    seconds: Mapping[str, float]  # by stage of the work
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Pruned:
    """A pruned model, ready to save or use."""

    model: nn.Module
    tokenizer: Any
    report: Report
