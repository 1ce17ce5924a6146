"""A search as a stage of a recipe asks for it, carried out: levels, fitness, questions, and a look at held-out text."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..allocation import fit
from ..budget import Allocation, Budget
from ..calibration.placement import Placement
from ..calibration.sample import Calibration
from ..errors import RecipeError
from ..granularity import Granularity
from ..sites import Anatomy, LinearSite, Site
from ..solvers import Solver
from . import search
from .fitness import Fitness
from .levels import LevelStore
from .space import Query, Space, Trial
from .strategies import Strategy
from .strategies.evolution import Evolution

__all__ = ["Job", "Search", "SearchRecord", "carry_out"]

_HELD_OUT = 4  # every fourth sequence of the search text is never searched on


@dataclass(frozen=True)
class Search:
    """Improve what the allocator says, by looking at candidates' divergence from the dense model on text of their own."""

    strategy: Strategy = Evolution()  # which candidates to look at
    evaluations: float = 100.0  # looks at the whole search text
    levels: tuple[float, ...] = ()  # sparsities that a site may have, ascending; none: eight around the budget's
    text: Calibration = Calibration("self", samples=16)  # neither calibration nor report text; "self" is the model's own
    top: int = 256  # most probable tokens of the dense model that are compared one by one

    def __post_init__(self) -> None:
        if self.evaluations <= 0 or self.top < 1 or self.text.samples < _HELD_OUT:
            raise RecipeError(f"evaluations = {self.evaluations:g}, top = {self.top}, text.samples = {self.text.samples}: expected "
                              f"more than 0 evaluations, at least one token, and at least {_HELD_OUT} sequences.")

    def levels_around(self, sparsity: float) -> tuple[float, ...]:
        """The levels asked for, or eight with the sparsity itself among them."""
        if self.levels:
            return self.levels
        step = min(0.05, sparsity / 4, (0.99 - sparsity) / 3)
        around = [round(sparsity + step * index, 6) for index in range(-4, 4)]
        dense = getattr(self.strategy, "dense_level", False) and around[0] > 0  # for units that are not decided yet
        return (*([0.0] if dense else []), *around)


@dataclass(frozen=True)
class SearchRecord:
    """What a search did, and what its answer is worth on text that it did not see."""

    strategy: str
    evaluations: float  # looks at the whole search text
    questions: int
    discarded: int  # candidates whose value was no number
    first: float  # divergence from the dense model, in nats per token, of the allocator's answer on the search text
    best: float  # of the search's answer
    held_out_first: float  # the same on held-out sequences
    held_out_best: float
    kept: bool  # whether the search's answer was used; it is not when it is worse on held-out text
    curve: tuple[tuple[float, float], ...]  # evaluations spent, best value so far
    block_passes: int  # computed
    block_passes_plain: int  # that would be computed without keeping states by prefix
    store_bytes: int  # of the level store
    seconds: Mapping[str, float]  # solving levels, searching


@dataclass(frozen=True)
class Job:
    """Everything a search needs to know of the stage that asks for it."""

    model: Any
    anatomy: Anatomy
    sites: tuple[Site, ...]
    matrices: Mapping[LinearSite, Granularity]  # the matrices that are solved, and their shapes
    solver: Solver
    budget: Budget
    granularity: Granularity
    tokens: Tensor  # calibration
    text: Tensor  # search
    placement: Placement
    batch: int
    folder: Path  # where levels and trials are kept
    identity: str  # of all that the answers depend on


Watch = Callable[[str, int | float, int | float], None]  # a phase, what is done, the total


def carry_out(plan: Search, job: Job, first: Allocation, seed: int, watch: Watch) -> tuple[Allocation, SearchRecord]:
    """The allocation that the search finds, meeting the budget to the weight, and what happened.

    Levels and trials that are in the job's folder already are used again.
    """
    start = time.perf_counter()
    space, store = _levels(plan, job, watch)
    solved = time.perf_counter()
    begin = space.nearest(first)
    curve: list[tuple[float, float]] = []

    def told(spent: float, best: Trial) -> None:
        curve.append((spent, best.value))
        watch("searching", spent, plan.evaluations)

    with _service(plan, job, space, store, held_out=False) as fitness:
        outcome = search(space, plan.strategy, fitness, begin, plan.evaluations, seed, told)
        before = fitness([Query(begin)])[0].value
    with _service(plan, job, space, store, held_out=True) as other:
        unseen = [trial.value for trial in other([Query(begin), Query(outcome.best.candidate)])]
    kept = unseen[1] <= unseen[0]
    record = SearchRecord(
        type(plan.strategy).__name__, plan.evaluations, len(outcome.trials), fitness.discarded, before, outcome.best.value,
        unseen[0], unseen[1], kept, tuple(curve), fitness.blocks, len(outcome.trials) * len(job.anatomy.blocks), store.bytes,
        {"solving levels": solved - start, "searching": time.perf_counter() - solved})
    return _exact(space.allocation(outcome.best.candidate), job) if kept else first, record


def _levels(plan: Search, job: Job, watch: Watch) -> tuple[Space, LevelStore]:
    levels = plan.levels_around(job.budget.sparsity)
    Space(job.sites, levels, job.budget)  # refuses levels that cannot meet the budget before anything is solved
    done: list[str] = []

    def solved(name: str) -> None:
        done.append(name)
        watch("solving levels", len(done), len(job.matrices))

    store = LevelStore.build(job.folder / "levels", job.model, job.anatomy, job.matrices, job.tokens, job.solver, levels,
                             job.identity, job.placement, job.batch, solved)
    errors = tuple(store.entries[matrix.name].errors for matrix in job.matrices)
    known = all(math.isfinite(error) for row in errors for error in row)  # a solver without a Gram matrix measures none
    return Space(job.sites, levels, job.budget, errors if known else ()), store


@contextmanager
def _service(plan: Search, job: Job, space: Space, store: LevelStore, held_out: bool) -> Iterator[Fitness]:
    """The fitness service on one part of the search text; every fourth sequence is held out."""
    rows = [index for index in range(len(job.text)) if (index % _HELD_OUT == _HELD_OUT - 1) == held_out]
    log = job.folder / ("held-out.jsonl" if held_out else "trials.jsonl")
    home = Placement(str(next(job.model.parameters()).device))  # where the whole model is
    fitness = Fitness(job.model, job.anatomy, space, store, job.text[rows], placement=home, batch=job.batch, top=plan.top,
                      log=log, identity=job.identity)
    try:
        yield fitness
    finally:
        fitness.close()


def _exact(allocation: Allocation, job: Job) -> Allocation:
    """The same shares, all moved by one amount so that the budget is met to the weight."""
    asked = job.budget.sparsity
    return fit(lambda site, level: allocation[site.name] + level - asked, job.sites, job.budget, job.granularity)
