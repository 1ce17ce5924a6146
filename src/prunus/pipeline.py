"""The road from a model and a recipe to a pruned model and its report: the only place where the parts meet."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from .achieved import counted, sparsity_of
from .allocation import reach
from .anatomy import describe
from .budget import Allocation
from .calibration.branches import branch_seconds, branch_stats
from .calibration.choices import Choices
from .calibration.loss import known_loss
from .calibration.placement import Placement, together
from .calibration.stream import Leaving, View, stream
from .calibration.target import Target
from .cost import Meter, metered
from .environment import Clock, environment, release_memory, reuse_memory
from .errors import RecipeError
from .evaluation import Context, Measurement
from .files import fingerprint
from .generations import generate, prompts_of
from .grams import Overlap
from .guards import excess, flags, overlaps, remarks, scarcity, shortfall
from .joined import Joined, check_mlps
from .journal import Journal
from .known import Known, checked
from .matrices import Task, changed, matrices_of, movable, resolved, select
from .problem import LayerProblem, LayerSolution, check_weights
from .recipe import Recipe, Stage, plain
from .recovery import block_by_block
from .reordering import put_in_order
from .repairs import Repairs
from .result import Pruned, Report, Shares, SiteRecord
from .search.plan import Job, Rankings, Search, SearchRecord, carry_out
from .sites import Anatomy, ChannelSite, LinearSite, Site, SublayerSite
from .solvers import solve_all
from .stats import LossNeeds, Needs, most
from .surgery.cut import check_left, cut_unread, skip
from .surgery.write import clear_rows, read_weight, write
from .telling import Progress, Watch, telling
from .traits import model_bytes, parameters_of, predicts_next, weight_norms
from .widening import widened

__all__ = ["Progress", "Watch", "allocate", "evaluate", "prune"]

_INSTEAD = "Name what reads statistics alone: --solver refit --allocation ranking for channels, --allocation uniform for matrices."
_OTHER_SEED = 7919  # search text that the model writes itself must not be the calibration text


@widened()
def prune(model: nn.Module, recipe: Recipe, *, tokenizer: Any = None, placement: Placement = Placement(),
          watch: Watch | None = None, resume: Path | None = None, source: str = "", known: Sequence[Known] = ()) -> Pruned:
    """Prune `model` in place, stage by stage, and measure it before and after.

    `tokenizer` may be left out only when no stage needs calibration, and nothing is measured. With `resume`, finished
    blocks are kept in that folder, and blocks found there are not solved again. `known` are values of the dense model that what
    is measured of it is held against. Everything that can be refused is refused before the model is touched: RecipeError, CorpusError,
    LoadError, ComparisonError. CalibrationError may come later.
    """
    tell: Watch = watch or (lambda progress: None)
    clock = Clock()
    with metered(clock, placement.device) as meter:
        meter.follow(model, describe(model))
        with clock("preparing"):
            run, chosen = _prepare(model, recipe, tokenizer, placement, tell, clock, resume)
        reuse_memory()
        dense, parameters, size = run.anatomy, parameters_of(model), model_bytes(model)
        context, prompts = Context(tokenizer, watch=telling(tell), dense={}), prompts_of(recipe.prompts)  # both models share it
        with clock("dense"):
            before = evaluate(model, recipe, context, tell, "dense model")
            sanity = checked(before, known)
            answers = generate(model, tokenizer, prompts)
        records, allocations, searches, beyond = run.stages(recipe, chosen, meter)
        with clock("pruned"):
            after = evaluate(model, recipe, context, tell, "pruned model")
            answers_after = generate(model, tokenizer, prompts)
        looks = math.fsum(found.spent for found in searches)
        cost = meter.cost(looks, sum(found.questions for found in searches), len(before) + len(after))
    matrices = counted(model, run.anatomy, dense)
    notes = (*scarcity(recipe, chosen, run.tokens), *beyond, *(remark for found in searches for remark in found.remarks), *map(str, sanity),
             *(shortfall(records, matrices) if len(run.anatomy.blocks) == len(dense.blocks) else ()), *remarks(before, after, run.overlaps))
    report = Report(recipe, tuple(allocations), tuple(records), sparsity_of(matrices), (parameters, parameters_of(model)),
                    (size, model_bytes(model)), before, after, prompts, answers, answers_after, cost,
                    environment(model, placement.device, source), notes, tuple(searches), flags(before, after, run.overlaps), run.overlaps,
                    sanity, matrices)
    return Pruned(model, tokenizer, report)


@widened()
def allocate(model: nn.Module, recipe: Recipe, *, tokenizer: Any = None, placement: Placement = Placement(),
             watch: Watch | None = None, resume: Path | None = None, source: str = "") -> Shares:
    """Decide how much each site of a recipe's one stage gives, by its allocator and its search; the model is left as it was.

    Arguments and errors are those of `prune`.
    """
    if len(recipe.stage) != 1:
        raise RecipeError(f"recipe.stage: {len(recipe.stage)} stages; what a later one gives depends on the model that an earlier one "
                          "leaves. Allocate for one stage at a time.")
    if recipe.stage[0].search and recipe.stage[0].search.per_channel:
        raise RecipeError("recipe.stage[0].search: its strategy decides which channels stay, which shares cannot say. Prune with it.")
    clock = Clock()
    with clock("preparing"):
        run, (sites,) = _prepare(model, recipe, tokenizer, placement, watch or (lambda progress: None), clock, resume)
    reuse_memory()
    allocation, _, found = run.shares(0, recipe.stage[0], sites)
    return Shares(recipe, allocation, found, clock.seconds, environment(model, placement.device, source))


def evaluate(model: nn.Module, recipe: Recipe, context: Context, watch: Watch | None = None,
             phase: str = "model") -> tuple[Measurement, ...]:
    """All metrics of the recipe, in order."""
    measured: list[Measurement] = []
    for place, metric in enumerate(recipe.metrics, 1):
        found = metric.measure(model, context)
        measured += found if isinstance(found, tuple) else (found,)
        if watch:
            watch(Progress(phase, place, len(recipe.metrics)))
    return tuple(measured)


def _prepare(model: Any, recipe: Recipe, tokenizer: Any, placement: Placement, tell: Watch, clock: Clock,
             resume: Path | None) -> "tuple[_Run, list[tuple[Site, ...]]]":
    """Check everything that can be checked before the model is touched, and draw the texts."""
    anatomy = describe(model)
    chosen = [select(anatomy, stage, index) for index, stage in enumerate(recipe.stage)]
    check_weights(model)
    searching = any(stage.search for stage in recipe.stage)
    deriving = [part for stage in recipe.stage for part in stage.deriving]
    if (searching or deriving) and not predicts_next(model):
        what, how = ("search", "candidates are compared") if searching else (deriving[0], "sensitivity to the loss is measured")
        raise RecipeError(f"{what}: {how} by the next token that a model predicts, which this one does not do. "
                          f"{'Leave it out.' if searching or what == 'target.fisher' else _INSTEAD}")
    calibrated = recipe.calibrated
    if tokenizer is None and (calibrated or searching or recipe.metrics or recipe.prompts):
        raise RecipeError("no tokenizer: text is read to calibrate and to measure. Put its files into the model's folder, or pass "
                          "tokenizer=…; with metrics=(), prompts=() and a solver that needs no data, none is needed.")
    seen = overlaps(recipe, calibrated)
    text = recipe.calibration
    given = text.read(tokenizer, model, recipe.seed) if calibrated else torch.empty(0, 0).long()
    tokens = torch.cat([given, given.new_zeros(text.writes(model), text.length)]) if calibrated else given  # until the model has written
    for stage, sites in zip(recipe.stage, chosen, strict=True):
        check_mlps(model, anatomy, stage, sites, tokens)
        if stage.recovery:
            stage.recovery.check(model, anatomy, tokens, placement, together(tokens.shape[1]))
    identity = fingerprint(recipe.to_toml(), _identity(model, given)) if resume else ""
    journal = Journal(resume) if resume else None
    if journal:
        journal.begin(identity)
    texts = {index: stage.search.draws(tokenizer, model, recipe.seed + _OTHER_SEED, f"stage[{index}].search.text")
             for index, stage in enumerate(recipe.stage) if stage.search}
    run = _Run(model, anatomy, given, placement, tell, clock, journal, identity, texts, recipe.seed, seen)
    if len(tokens) > len(given):
        written = run.measured("written", lambda: {"tokens": text.write(tokenizer, model, recipe.seed, telling(tell)).tolist()})
        run.tokens = torch.cat([given, torch.tensor(written["tokens"])])
    return run, chosen


def _identity(model: Any, tokens: Tensor) -> str:
    """A hash of what statistics depend on."""
    first = next(model.parameters())
    return fingerprint(model.config.to_json_string(), str(first.dtype), str(tokens.tolist()),
                       *weight_norms(model))


@dataclass
class _Run:
    """One run's fixed surroundings."""

    model: nn.Module
    anatomy: Anatomy
    tokens: Tensor
    placement: Placement
    tell: Watch
    clock: Clock
    journal: Journal | None
    identity: str
    texts: Mapping[int, Tensor | Choices]  # search text, by stage
    seed: int
    overlaps: tuple[Overlap, ...]
    losses: dict[tuple[int, LossNeeds], Mapping[str, Any]] = field(default_factory=dict)  # by stage and what it wants to know
    remarks: list[str] = field(default_factory=list)  # of recoveries
    said: int = 0  # remarks that are of no block, or are kept with theirs
    joined: Joined = field(init=False)  # the MLPs of the stage that is carried out

    def stages(self, recipe: Recipe, chosen: list[tuple[Site, ...]],
               meter: Meter) -> tuple[list[SiteRecord], list[Allocation], list[SearchRecord], list[str]]:
        """Prune stage after stage; what a later one may prune depends on what an earlier one left."""
        dense = self.anatomy
        records: list[SiteRecord] = []
        allocations: list[Allocation] = []
        searches: list[SearchRecord] = []
        beyond: list[str] = []
        for index, stage in enumerate(recipe.stage):
            sites = chosen[index] if self.anatomy is dense else select(self.anatomy, stage, index)
            shares, rankings, found = self.shares(index, stage, sites)
            allocations.append(shares)
            searches += [found] if found else []
            records += self.carry_out(index, stage, sites, shares, rankings)
            beyond += excess(index, stage, sites, shares, resolved(stage.granularity, stage.solver))
            meter.follow(self.model, self.anatomy)  # matrices that were cut are other modules
        check_weights(self.model, "They overflow in this dtype: compute in another one (--dtype bfloat16 or float32).")
        return records, allocations, searches, beyond + self.remarks

    def shares(self, index: int, stage: Stage, sites: tuple[Site, ...]) -> tuple[Allocation, Rankings, SearchRecord | None]:
        """What the stage's allocator says, or what its search makes of that."""
        sites = self._timed(index, stage, sites)
        if "allocation" in stage.loss_needs:  # gradients differ with the device and the number of threads
            first: Allocation = self.measured(f"shares-{index}", lambda: dict(self._decide(index, stage, sites)))
        else:
            first = self._decide(index, stage, sites)
        return self._improve(index, stage, stage.search, sites, first) if stage.search else (first, {}, None)

    def _timed(self, index: int, stage: Stage, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        """The same sites with the seconds that they take, if the stage counts them: once measured, a run that goes on has the same."""
        if "latency" not in stage.denominators:
            return sites

        with self.clock("allocating"):
            found = self.measured(f"seconds-{index}", lambda: branch_seconds(self.model, self.anatomy, self.tokens, self.placement))
        return tuple(replace(site, seconds=found[site.name]) if isinstance(site, SublayerSite) else site for site in sites)

    def measured(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Once, where a run can go on."""
        return self.journal.measured(self.identity, name, measure) if self.journal else measure()

    def _decide(self, index: int, stage: Stage, sites: tuple[Site, ...]) -> Allocation:
        """How much each site gives, after one look at the loss and one at the inputs of all sites if the allocator needs them."""
        plan, allocation = matrices_of(self.anatomy, sites, stage), stage.allocation
        measured: dict[str, Any] = {}
        with self.clock("allocating"):
            known = self._known(index, stage, sites, "allocation")
            if stage.sites == ("sublayer",):
                seen = branch_stats(self.model, self.anatomy, self.tokens, self.placement, self._batch)
                measured = {site.name: allocation.measure(site, torch.empty(0), seen[site.name], known.get(site.name)) for site in sites}
            for views in self._stream(plan, allocation.needs) if known or allocation.needs != "nothing" else ():
                for view in views:
                    site = plan[view.site].site
                    measured[site.name] = allocation.measure(site, self._weight(view), view.stats, known.get(view.site.name))
            return allocation.allocate(sites, measured, stage.budget, resolved(stage.granularity, stage.solver))

    def _known(self, index: int, stage: Stage, sites: tuple[Site, ...], part: str) -> Mapping[str, Any]:
        """What a part of the stage wants to know of the loss, by matrix or branch, of the model as the stage finds it."""
        needs = stage.loss_needs.get(part)
        if needs and (index, needs) not in self.losses:
            self.losses[index, needs] = known_loss(self.model, self.anatomy, sites, self.tokens, needs, self.seed)
        return self.losses[index, needs] if needs else {}

    def _improve(self, index: int, stage: Stage, search: Search, sites: tuple[Site, ...],
                 first: Allocation) -> tuple[Allocation, Rankings, SearchRecord]:
        """Levels and trials wait beside the finished blocks, unless the search names a store for levels."""
        plan = {matrix: task.granularity for matrix, task in matrices_of(self.anatomy, sites, stage).items()}
        solved = fingerprint(_identity(self.model, self.tokens), str(plain(stage.solver)), *map(str, plan.values()),
                             *(["weighted"] if stage.target.fisher else []))
        with ExitStack() as stack, self.clock("searching"):
            folder = self.journal.folder if self.journal else Path(stack.enter_context(TemporaryDirectory(prefix="prunus-")))
            job = Job(self.model, self.anatomy, sites, plan, stage.solver, stage.budget,
                      resolved(stage.granularity, stage.solver), self.tokens,
                      self.texts[index], self.placement, folder / f"search-{index}", solved, self._known(index, stage, sites, "solver"),
                      stage.recovery, stage.target)
            return carry_out(search, job, first, self.seed, telling(self.tell))

    def _stream(self, plan: Iterable[LinearSite], needs: Needs, done: frozenset[int] = frozenset(), target: Target = Target(),
                leaving: Leaving | None = None) -> Iterator[list[View]]:
        batch, needs = (self._repairs.together, most(needs, "power")) if leaving else (self._batch, needs)
        return stream(self.model, self.anatomy, list(plan), self.tokens, needs, self.placement, batch, done, target, leaving)

    @property
    def _batch(self) -> int:
        """Sequences that pass through a block together."""
        return together(self.tokens.shape[1])

    def _weight(self, view: View) -> Tensor:
        return read_weight(view.module).to(self.placement.device)

    def carry_out(self, index: int, stage: Stage, sites: tuple[Site, ...], allocation: Allocation,
                  rankings: Rankings) -> list[SiteRecord]:
        """Prune every site of a stage, block by block; then leave out, for good, what is gone as a whole."""
        if stage.sites == ("sublayer",):
            return self._skip(stage, sites, allocation)
        check_left(self.anatomy, [site.branch for site in sites if isinstance(site, ChannelSite)
                                  and reach(site, allocation[site.name], stage.granularity) == 1])
        if moving := movable(self.anatomy, sites, stage.granularity):
            with self.clock("reordering"):
                self.remarks.append(put_in_order(self.model, moving, stage.granularity, lambda: self._stream(moving, "power"),
                                                 partial(self.measured, f"orders-{index}"),
                                                 partial(telling(self.tell), "reordering inputs")))
        plan = matrices_of(self.anatomy, sites, stage, rankings)
        total = sum(site.size for site in plan)
        done = self.journal.done(index) if self.journal else frozenset()
        self.said = len(self.remarks)
        records: list[SiteRecord] = []
        solved = 0
        repair = block_by_block(stage.recovery)
        later = stage.recovery if not repair else None
        before = {name: value.detach().clone() for name, value in changed(self.model, plan, plan).items()} if later else {}
        finish = partial(self._finish, index, plan, records, done, repair is not None)
        with self.clock("pruning"), ExitStack() as stack:
            known = self._known(index, stage, sites, "solver")
            shapes = {site: task.granularity for site, task in plan.items()}
            leaving = self._repairs.in_turn(repair, shapes, done, finish, stage.recovery, stack) if repair else None
            self.joined = Joined(self.model, self.anatomy, stage, sites, self.placement, self.clock, telling(self.tell))
            leaving = self.joined.in_turn(done, records, leaving, finish)
            for views in self._stream(plan, stage.solver.needs, done, stage.target, leaving):
                for view, record in self._group(index, stage, views, plan, allocation, known, done):
                    records.append(record)
                    solved += view.site.size
                    self.tell(Progress("pruning", solved, total, record))
                if leaving is None:
                    finish(views[0].site.block)
                del views, view  # statistics go before the next ones are made
            if later:
                self._repairs.afterwards(later, (), before)
            if stage.sites == ("channel",):
                self.anatomy = cut_unread(self.model, self.anatomy, [site for site in sites if isinstance(site, ChannelSite)])
        return records

    @property
    def _repairs(self) -> Repairs:
        return Repairs(self.model, self.anatomy, self.tokens, self.placement, self._batch, self.clock, telling(self.tell), self.remarks)

    def _skip(self, stage: Stage, sites: tuple[Site, ...], allocation: Allocation) -> list[SiteRecord]:
        """Repair what is kept, and leave branches out of the model."""
        gone = [site for site in sites if isinstance(site, SublayerSite) and allocation[site.name] >= 0.5]
        check_left(self.anatomy, [site.name for site in gone])
        with self.clock("pruning"):
            if stage.recovery:
                self._repairs.afterwards(stage.recovery, gone, {})
            self.anatomy = skip(self.model, self.anatomy, [site.name for site in gone])
        return [SiteRecord(site.name, allocation[site.name], float(site in gone), None, 0.0) for site in sites]

    def _group(self, index: int, stage: Stage, views: list[View], plan: Mapping[LinearSite, Task],
               allocation: Allocation, known: Mapping[str, Any], done: frozenset[int]) -> Iterator[tuple[View, SiteRecord]]:
        """Solve and write the sites that came together, or recall them from an interrupted run."""
        block = views[0].site.block
        if self.journal and block in done:
            yield from zip(views, self._recalled(self.journal, index, block, allocation), strict=True)
            return
        problems = [LayerProblem(stage.target.goal(self._weight(view), view.stats), view.stats, plan[view.site].granularity,
                                 allocation[plan[view.site].site.name], view.site.name, known.get(view.site.name),
                                 plan[view.site].ranking) for view in views]
        answers, left = solve_all(stage.solver, problems), list(zip(views, problems, strict=True))
        while left:
            start = time.perf_counter()
            with self.clock("solving"):
                solutions = next(answers)
                solved, left = left[: len(solutions)], left[len(solutions) :]
                errors = [problem.error(solution.weight) for (_, problem), solution in zip(solved, solutions, strict=True)]
                for (view, problem), solution in zip(solved, solutions, strict=True):
                    self._write(view, plan[view.site].site, solution)
                    self.joined.remember(view, problem, solution)
            rate = (time.perf_counter() - start) / sum(view.site.size for view, _ in solved)
            for (view, problem), solution, error in zip(solved, solutions, errors, strict=True):
                reached = 1 - int(solution.mask.count_nonzero()) / solution.mask.numel()
                yield view, SiteRecord(plan[view.site].site.name, problem.sparsity, reached, error, rate * view.site.size)
        for view in views:
            view.stats.forget()

    def _recalled(self, journal: Journal, index: int, block: int, allocation: Allocation) -> list[SiteRecord]:
        """Put a finished block back into the model. Raises RecipeError when its sites gave other shares than they are to give."""
        tensors, records, remarks = journal.recall(index, block)
        if any(abs(record.asked - allocation[record.site]) > 1e-4 for record in records):
            raise RecipeError(f"{journal.folder}: its finished blocks have other shares than this run's. Use --overwrite to discard it.")
        self.model.load_state_dict(tensors, strict=False)
        self.remarks += remarks
        return records

    def _finish(self, index: int, plan: Mapping[LinearSite, Task], records: list[SiteRecord], done: frozenset[int], whole: bool,
                block: int) -> None:
        """Once all sites of a block are solved, store it, and give back what memory it took; `whole`, if all of it may have changed."""
        matrices = [site for site in plan if site.block == block]
        names = {plan[site].site.name for site in matrices}
        ours = [record for record in records if record.site in names]
        if not ours or len(ours) < len(matrices):
            return
        if self.journal and block not in done:
            name = self.anatomy.blocks[block].name
            tensors = {f"{name}.{key}": value for key, value in self.model.get_submodule(name).named_parameters()} if whole else \
                changed(self.model, plan, matrices)
            self.journal.keep(self.identity, index, block, tensors, ours, self.remarks[self.said :])
        self.said = len(self.remarks)
        release_memory()

    def _write(self, view: View, site: Site, solution: LayerSolution) -> None:
        write(view.module, solution)
        if isinstance(site, ChannelSite):
            kept = solution.mask[0].view(site.count, site.width)[:, 0].cpu()
            clear_rows(self.model, site.producers, (~kept).nonzero().flatten())
