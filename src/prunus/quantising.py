"""A model's block matrices on a grid of few bits, in the order of the forward pass."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import describe
from .calibration.placement import Placement, together
from .calibration.sample import Calibration
from .calibration.stream import View, stream
from .environment import release_memory
from .errors import RecipeError
from .granularity import Unstructured
from .problem import LayerProblem, LayerSolution, check_weights
from .quantisation import Grid, Rounded
from .quantisers import Quantiser
from .quantisers.gptq import GPTQ
from .sites import LinearSite
from .surgery.write import read_weight, write
from .widening import widened

__all__ = ["MatrixRecord", "Plan", "Quantised", "quantise"]

Watch = Callable[[str, int | float, int | float], None]


@dataclass(frozen=True)
class Plan:
    """All that decides a quantisation, but the model and the machine."""

    method: Quantiser = GPTQ()
    grid: Grid = Grid()
    calibration: Calibration = Calibration()  # text for the statistics, where the method needs any
    seed: int = 0  # chooses the calibration sequences

    def __str__(self) -> str:
        return f"{self.grid} by {type(self.method).__module__.rpartition('.')[2]}"


@dataclass(frozen=True)
class MatrixRecord:
    """What happened to one matrix."""

    site: str
    kept: float  # the fraction of its weights that was not 0 before
    left: float  # the fraction that is not 0 now: small ones round to 0
    error: float | None  # relative output error on calibration data; None when no Gram was collected


@dataclass(frozen=True)
class Quantised:
    """A model whose block matrices hold what their codes stand for, and the codes."""

    model: nn.Module
    tokenizer: Any
    plan: Plan
    matrices: Mapping[str, Rounded]  # by site
    records: tuple[MatrixRecord, ...]
    seconds: float


@widened()
def quantise(model: nn.Module, plan: Plan = Plan(), *, tokenizer: Any = None, placement: Placement = Placement(),
             watch: Watch = lambda phase, done, total: None) -> Quantised:
    """Round the matrices of `model`'s blocks in place; what is 0 stays exactly 0, embeddings and head stay as they are.

    Matrices are calibrated on what the model computes with all earlier ones rounded. `tokenizer` may be left out when the method needs
    no data. RecipeError and CorpusError come before the model is touched; CalibrationError may come later.
    """
    start = time.perf_counter()
    check_weights(model)
    anatomy = describe(model)
    sites = [site for site in anatomy.sites("linear") if isinstance(site, LinearSite)]
    for site in sites:
        _check(model, site, plan.grid)
    needs = plan.method.needs
    tokens = torch.empty(0, 0).long() if needs == "nothing" else plan.calibration.tokens(tokenizer, model, plan.seed)
    matrices: dict[str, Rounded] = {}
    records: list[MatrixRecord] = []
    total = sum(site.size for site in sites)
    for views in stream(model, anatomy, sites, tokens, needs, placement, together(tokens.shape[1]) if len(tokens) else 1):
        for view, rounded, record in _rounded(views, plan, placement):
            matrices[view.site.name] = rounded
            records.append(record)
        watch("quantising", sum(site.size for site in sites if site.name in matrices), total)
        del views, view  # statistics go before the next ones are made
    release_memory()
    return Quantised(model, tokenizer, plan, matrices, tuple(records), time.perf_counter() - start)


def _check(model: Any, site: LinearSite, grid: Grid) -> None:
    module = model.get_submodule(site.name)
    if not isinstance(module, nn.Linear):
        raise RecipeError(f"{site.name} is a {type(module).__name__}, expected a Linear: other modules have no format of quantised weights "
                          "that transformers reads.")
    grid.check(site.shape[1], site.name)


def _rounded(views: list[View], plan: Plan, placement: Placement) -> Iterator[tuple[View, Rounded, MatrixRecord]]:
    """Round the matrices that came together; those with the same inputs as one."""
    for _, group in groupby(views, key=lambda view: id(view.stats)):
        alike = list(group)
        weights = [read_weight(view.module).to(placement.device) for view in alike]
        whole = torch.cat(weights)
        module: Any = alike[0].module
        found = plan.method.quantise(whole, whole != 0, plan.grid, alike[0].stats, module.weight.dtype)
        row = 0
        for view, weight in zip(alike, weights, strict=True):
            part = found.rows(row, row + len(weight))
            row += len(weight)
            yield view, part, _written(view, weight, part)
        alike[0].stats.forget()


def _written(view: View, weight: Tensor, rounded: Rounded) -> MatrixRecord:
    new = rounded.weight
    error = LayerProblem(weight, view.stats, Unstructured("row"), 0.0, view.site.name).error(new)
    write(view.module, LayerSolution(new, weight != 0))
    return MatrixRecord(view.site.name, float((weight != 0).float().mean()), float((new != 0).float().mean()), error)
