"""A search as a stage of a recipe asks for it, carried out: levels, fitness, questions, and a look at held-out text."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..allocation import fit
from ..budget import Allocation, Budget
from ..calibration.choices import Choices, as_text, encoded, examples
from ..calibration.corpus import Text
from ..calibration.placement import Placement, together
from ..calibration.sample import Calibration, check_length, with_bos
from ..calibration.target import Target
from ..criteria import Criterion
from ..environment import available_bytes
from ..errors import RecipeError
from ..files import fingerprint
from ..granularity import Granularity
from ..recovery import Recovery
from ..sites import Anatomy, ChannelSite, LinearSite, Site
from ..solvers import Solver
from . import search
from .channels import ChannelSpace
from .fitness import Fitness, Objective
from .levels import LevelStore, check_room, planned_bytes
from .space import Candidate, Query, Space, Trial
from .strategies import Strategy
from .strategies.reinforce import Reinforce

__all__ = ["HELD_OUT", "Job", "Moment", "Rankings", "Search", "SearchRecord", "apart", "carry_out"]

HELD_OUT = 4  # every fourth sequence of the search text is never searched on


@dataclass(frozen=True)
class Search:
    """Improve what the allocator says, by looking at what candidates predict on text of their own."""

    strategy: Strategy = Reinforce()  # which candidates to look at
    evaluations: float = 100.0  # looks at the whole search text
    levels: tuple[float, ...] = ()  # sparsities that a site may have, ascending; none: eight around the budget's
    text: Calibration = Calibration("self", samples=16)  # neither calibration nor report text; "self" is the model's own
    objective: Objective = "divergence"  # from the dense model; perplexity of the search text; or accuracy on examples in its place
    top: int = 256  # most probable tokens of the dense model that are compared one by one
    store: str = ""  # folder for the level store, which other searches may use again; none: one of this run's own
    seed: int | None = None  # of the strategy; None: the recipe's
    repaired: int = 0  # calibration sequences that candidates are repaired on before they are looked at; 0: they are not repaired
    patience: float = 0.0  # looks without a better value on held-out text after which the search ends; 0: it does not

    def __post_init__(self) -> None:
        if self.patience < 0 or self.repaired < 0:
            raise RecipeError(f"patience = {self.patience:g}, repaired = {self.repaired}: expected no negative number.")
        if self.objective == "accuracy" and self.text.corpus == "self":
            raise RecipeError('objective = "accuracy": needs examples, which the model does not write itself. Name a JSONL file in '
                              "text.corpus (--search-text).")
        if self.evaluations <= 0 or self.top < 1 or self.text.samples < HELD_OUT:
            raise RecipeError(f"evaluations = {self.evaluations:g}, top = {self.top}, text.samples = {self.text.samples}: expected "
                              f"more than 0 evaluations, at least one token, and at least {HELD_OUT} sequences.")

    @property
    def per_channel(self) -> bool:
        """Whether its strategy decides about single channels."""
        return bool(getattr(self.strategy, "per_channel", False))

    @property
    def looks(self) -> float:
        """How many it may take: as many as it needs where its strategy comes to an end of its own."""
        return math.inf if getattr(self.strategy, "ends", False) else self.evaluations

    def reads(self) -> Text | None:
        """The text that candidates are looked at on; None when the model writes it itself. Raises CorpusError."""
        if self.objective != "accuracy":
            return self.text.text()
        return as_text(examples(self.text.corpus, self.text.split), self.text.corpus, self.text.split)

    def draws(self, tokenizer: Any, model: Any, seed: int, where: str) -> Tensor | Choices:
        """Sequences of the text, or examples. Raises CorpusError, or RecipeError when the model cannot take the length."""
        text = self.text
        if self.objective != "accuracy":
            return text.tokens(tokenizer, model, seed, where)
        check_length(model, text.length, f"{where}.length")
        return encoded(examples(text.corpus, text.split), tokenizer, text.samples, text.length, seed, with_bos(tokenizer, text.bos))

    def levels_around(self, sparsity: float, whole: bool = False) -> tuple[float, ...]:
        """The levels asked for, or eight with the sparsity itself among them; branches are there or not."""
        if whole:
            return (0.0, 1.0)
        if self.levels:
            return self.levels
        step = min(0.05, sparsity / 4, (0.99 - sparsity) / 3)
        around = [round(sparsity + step * index, 6) for index in range(-4, 4)]
        dense = getattr(self.strategy, "dense_level", False) and around[0] > 0  # for units that are not decided yet
        return (*([0.0] if dense else []), *around)


@dataclass(frozen=True)
class Moment:
    """A search that has just found something better."""

    spent: float  # looks at the whole search text
    value: float  # the best so far, on the search text
    held_out: float  # of the same candidate, on held-out sequences
    seconds: float = field(default=0.0, compare=False)  # since the search began, levels solved


@dataclass(frozen=True)
class SearchRecord:
    """What a search did, and what its answer is worth on text that it did not see; values as the service of fitness gives them."""

    strategy: str
    objective: Objective
    evaluations: float  # looks at the whole search text that were allowed
    spent: float  # that were taken, without those at held-out text
    questions: int
    discarded: int  # candidates whose value was no number
    dense: float  # the dense model's value on the search text: 0 for a divergence
    first: float  # the allocator's answer, on the search text
    best: float  # the search's answer: of the curve, the one that is best on held-out text
    held_out_first: float  # the same on held-out sequences
    held_out_best: float
    kept: bool  # whether the search's answer was used; it is not unless it is better on held-out text
    curve: tuple[Moment, ...]
    block_passes: int  # of the whole search text, computed
    block_passes_plain: int  # that would be computed without keeping states by prefix
    store_bytes: int  # of the level store
    seconds: Mapping[str, float]  # solving levels or ranking channels, searching

    @property
    def unit(self) -> str:
        """Of the values."""
        return "of the examples wrong" if self.objective == "accuracy" else "nats per token"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the figures should know."""
        found = []
        if not self.kept:
            found.append("Nothing that the search found was better on held-out text than what it started from "
                         f"({self.held_out_first:.4f} {self.unit}), which was used.")
        if self.best < self.dense:
            found.append(f"The search's allocation beats the dense model on the search text ({self.best:.4f} against {self.dense:.4f} "
                         f"{self.unit}): it fits that text, which says little about other text.")
        if self.curve and self.curve[-1].value < self.best:
            found.append(f"The candidate that was best on the search text ({self.curve[-1].value:.4f} {self.unit}) was not the best "
                         "on held-out text, and was passed over.")
        return tuple(found)


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
    text: Tensor | Choices  # search
    placement: Placement
    folder: Path  # where levels and trials are kept
    solved: str  # identity of all that the levels depend on but the levels themselves
    loss: Mapping[str, Any]  # what the solver wants to know of it, by matrix
    recovery: Recovery | None  # what repairs the branches that stay
    target: Target = Target()  # what matrices are fitted to


Watch = Callable[[str, int | float, int | float], None]  # a phase, what is done, the total
Rankings = Mapping[str, Tensor]  # by site: which columns of its consumer are to stay first


def carry_out(plan: Search, job: Job, first: Allocation, seed: int, watch: Watch) -> tuple[Allocation, Rankings, SearchRecord]:
    """The allocation that the search finds, meeting the budget to the weight; by site, how channels rank where it learned that;
    and what happened.

    Levels and trials that are in the job's folder already are used again.
    """
    start = time.perf_counter()
    space, store = (_channels(job, first, watch), None) if plan.per_channel else _levels(plan, job, watch)
    solved = time.perf_counter()
    begin = space.first if isinstance(space, ChannelSpace) else space.nearest(first)
    with (_rehearsal(plan, job) as rehearsal, _service(plan, job, space, store, rehearsal, held_out=True) as other,
          _service(plan, job, space, store, rehearsal, held_out=False) as fitness):
        monitor = _Monitor(plan, other, begin, watch)
        outcome = search(space, plan.strategy, fitness, begin, plan.looks, seed if plan.seed is None else plan.seed,
                         monitor.told)
        moment, answer = monitor.best()
        before = fitness([Query(begin)])[0].value
    record = SearchRecord(
        type(plan.strategy).__name__, plan.objective, plan.evaluations, outcome.spent, len(outcome.trials), fitness.discarded,
        fitness.dense, before, moment.value, monitor.first, moment.held_out, moment.held_out < monitor.first,
        tuple(moment for moment, _ in monitor.moments), round(fitness.blocks), round(outcome.spent * len(job.anatomy.blocks)),
        store.bytes if store else 0, {"solving levels": solved - start, "searching": time.perf_counter() - solved})
    if not record.kept:
        return first, {}, record
    shares = space.allocation(answer)
    return (shares, space.rankings(answer), record) if isinstance(space, ChannelSpace) else (_exact(shares, job), {}, record)


def apart(count: int, held_out: bool) -> list[int]:
    """Which of so many sequences are searched on, or are held out."""
    return [index for index in range(count) if (index % HELD_OUT == HELD_OUT - 1) == held_out]


class _Monitor:
    """Looks at every candidate that is the best so far on text that the search does not see."""

    def __init__(self, plan: Search, held_out: Fitness, first: Candidate, watch: Watch) -> None:
        self.plan, self.held_out, self.watch, self.start = plan, held_out, watch, time.perf_counter()
        self.first = held_out([Query(first)])[0].value
        self.moments: list[tuple[Moment, Candidate]] = []

    def told(self, spent: float, best: Trial) -> bool:
        """Whether the search goes on."""
        self.watch("searching", spent, max(spent, self.plan.evaluations))
        if not self.moments or best.value < self.moments[-1][0].value:
            unseen = self.held_out([Query(best.candidate)])[0].value
            self.moments.append((Moment(spent, best.value, unseen, time.perf_counter() - self.start), best.candidate))
        return self.plan.patience == 0 or spent - self.best()[0].spent < self.plan.patience

    def best(self) -> tuple[Moment, Candidate]:
        """What held-out text likes best, of what was the best on the search text once."""
        return min(self.moments, key=lambda found: found[0].held_out)


def _levels(plan: Search, job: Job, watch: Watch) -> tuple[Space, LevelStore | None]:
    """What may be chosen, and where its weights are; branches have none, as they are there or not."""
    levels = plan.levels_around(job.budget.sparsity, whole=not job.matrices)
    space = Space(job.sites, levels, job.budget)  # refuses levels that cannot meet the budget before anything is solved
    if not job.matrices:
        return space, None
    planned = planned_bytes(list(job.matrices), levels, next(job.model.parameters()).element_size())
    phase = f"solving levels, {planned / 2**20:.0f} MiB on disk"
    done: list[str] = []
    folder = _home(plan, job)
    check_room(folder, planned)

    def solved(name: str) -> None:
        done.append(name)
        watch(phase, len(done), len(job.matrices))

    if not folder.exists():
        watch(phase, 0, len(job.matrices))
    store = LevelStore.build(folder, job.model, job.anatomy, job.matrices, job.tokens, job.solver, levels,
                             job.solved, job.placement, together(job.tokens.shape[1]), solved, job.loss, job.target.fisher)
    errors = tuple(store.entries[matrix.name].errors for matrix in job.matrices)
    known = all(math.isfinite(error) for row in errors for error in row)  # a solver without a Gram matrix measures none
    return Space(job.sites, levels, job.budget, errors if known else (), job.granularity), store


def _channels(job: Job, first: Allocation, watch: Watch) -> ChannelSpace:
    """What may be chosen where every channel is decided by itself, beginning with what the solver's criterion says."""
    sites = [site for site in job.sites if isinstance(site, ChannelSite)]
    criterion: Criterion = job.solver.criterion  # type: ignore[attr-defined]  # of solvers that take a ranking
    return ChannelSpace.build(sites, first, criterion, job.model, job.anatomy, job.tokens, job.loss, job.placement,
                              together(job.tokens.shape[1]), lambda done: watch("ranking channels", done, len(sites)))


@contextmanager
def _rehearsal(plan: Search, job: Job) -> Iterator[Any]:
    """The repair that candidates are looked at with, if they are."""
    if not plan.repaired:
        yield None
        return
    recovery: Any = job.recovery
    tokens = job.tokens[: plan.repaired]
    with ExitStack() as stack:
        yield recovery.rehearse(job.model, job.anatomy, tokens, Placement.of(job.model), together(tokens.shape[1]), stack)


@contextmanager
def _service(plan: Search, job: Job, space: Space | ChannelSpace, store: LevelStore | None, rehearsal: Any,
             held_out: bool) -> Iterator[Fitness]:
    """The fitness service on one part of the search text; every fourth sequence is held out."""
    rows = apart(len(job.text), held_out)
    log = job.folder / ("held-out.jsonl" if held_out else "trials.jsonl")
    text = job.text.taking(rows) if isinstance(job.text, Choices) else job.text[rows]
    content = (text.tokens, text.chosen, text.answers) if isinstance(text, Choices) else (text,)
    asked = fingerprint(job.solved, plan.objective, str(plan.top), *(str(part.tolist()) for part in content),
                        *((str(job.recovery), str(plan.repaired)) if plan.repaired else ()))
    memory = 0 if isinstance(space, ChannelSpace) else available_bytes() // (32 if held_out else 4)  # draws share no prefix
    fitness = Fitness(job.model, job.anatomy, space, store, text, objective=plan.objective, placement=Placement.of(job.model),
                      batch=together(content[0].shape[1]), top=plan.top, memory=memory, log=log,
                      folder=_home(plan, job) / "dense", identity=asked, rehearsal=rehearsal)
    try:
        yield fitness
    finally:
        fitness.close()


def _home(plan: Search, job: Job) -> Path:
    """Where levels are, and what the dense model predicts."""
    return Path(plan.store) if plan.store else job.folder / "levels"


def _exact(allocation: Allocation, job: Job) -> Allocation:
    """The same shares, all moved by one amount so that the budget is met to the weight."""
    asked = job.budget.sparsity
    return fit(lambda site, level: allocation[site.name] + level - asked, job.sites, job.budget, job.granularity)
