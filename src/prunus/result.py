"""Results: the pruned model and everything that was measured on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .achieved import Counted
from .budget import Allocation
from .cost import Cost
from .evaluation import Measurement
from .grams import Overlap
from .granularity import NM, Columns, Granularity, Tile
from .known import Sanity
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
    bytes: tuple[int, int]  # of their weights
    before: tuple[Measurement, ...]  # of the dense model
    after: tuple[Measurement, ...]
    prompts: tuple[str, ...]
    answers_before: tuple[str, ...]
    answers_after: tuple[str, ...]
    cost: Cost
    environment: Mapping[str, str]
    notes: tuple[str, ...] = ()  # what a reader should know
    searches: tuple[SearchRecord, ...] = ()  # of the stages that search
    flags: tuple[str, ...] = ()  # why the figures may not be what they look like; a reader sees these first
    overlaps: tuple[Overlap, ...] = ()  # of calibration, search and report text
    sanity: tuple[Sanity, ...] = ()  # the dense model beside what is known of it
    matrices: tuple[Counted, ...] = ()  # of the blocks of the dense model, as they are now

    @property
    def seconds(self) -> Mapping[str, float]:
        """By stage of the work."""
        return self.cost.seconds

    @property
    def gains(self) -> tuple[str, ...]:
        """What the model has won in size and speed, and what it has not, a line each."""
        (dense, left), (before, after) = self.parameters, self.bytes
        lines = []
        if left < dense:
            lines.append(f"{left:,} of {dense:,} parameters are left (embeddings included), in {after / 2**20:.1f} of {before / 2**20:.1f} "
                         f"MiB of weights: {1 - after / before:.1%} less to store and to hold, and nothing is computed for what is gone.")
        shapes = {_zeros(stage.granularity): None for stage in self.recipe.stage if stage.sites == ("linear",)}
        if shapes:
            lines.append("Zeros are stored and multiplied like any number: PyTorch and llama.cpp run the model no faster for them as it "
                         f"is, and it is no smaller. {' '.join(shapes)} What runs faster everywhere is what is not there: channels and "
                         "branches (--sites channel, --sites sublayer).")
        return tuple(lines)


def _zeros(shape: Granularity) -> str:
    """Where zeros of this shape are known to run faster."""
    match shape:
        case NM(2, 4):
            return ("Zeros in 2:4 are for NVIDIA GPUs from Ampere on, after torch.sparse.to_sparse_semi_structured, and pay there in large "
                    "batches.")
        case NM(n, m):
            return f"No released runtime is known to run {n}:{m} faster."
        case Tile():
            return "No released runtime for language models is known to run tiles of zeros faster."
        case Columns():
            return "Columns of zeros are still there; as channels they would not be."
    return ("Unstructured zeros are for kernels made for them: by their authors' figures MACKO on NVIDIA GPUs and SparAMX on CPUs with AMX "
            "are faster.")


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
