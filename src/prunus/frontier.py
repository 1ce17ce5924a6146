"""An architecture search as a person asks for it, from a model and a plan to a front.

Channels are put in order, sub-networks valued by several objectives, and the front valued again on what the search did not see.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .alone import FOLDER, Alone
from .anatomy import describe
from .calibration.corpus import check_apart
from .calibration.pair import Watch, unwatched, watched
from .calibration.placement import Placement, together
from .calibration.sample import Calibration
from .calibration.tasks import Labelled, encoded
from .environment import Clock, environment, return_memory
from .errors import PrunusError, RecipeError
from .files import fingerprint
from .finetune import TrainingProgress
from .front import FITS, LEVELS, Front, FrontSearch, Point
from .granularity import Unstructured
from .lookup import find
from .matrices import resolved
from .ordering import channels_of, check_loss, derivatives, descending, importance, scores_by, seen_by, tokens_of, training_batches
from .problem import check_weights
from .qualities import on_task, on_text
from .recipe import plain
from .recovery import Recovery
from .search.baselines import BASELINES, factors, fewest_heads, first_layers, least, rescaled, retraining_free
from .search.explore import Exploration, Progress, explore
from .search.fits import Fits
from .search.genome import Architectures
from .search.latency import Latency
from .search.levels import LevelStore, check_room, planned_bytes
from .search.objectives import Judge
from .search.pareto import front
from .search.searchers import Question, Trial
from .search.space import Candidate
from .search.spaces.mixed import Mixed
from .search.subnetwork import Kept, Units
from .search.thin import Thin
from .silence import gated
from .sites import LinearSite
from .traits import predicts_next, weight_norms
from .widening import widened

__all__ = ["check_searched", "find_front", "fits_of", "genome_of", "repair", "thin_of"]

_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of the weights, that baselines are asked for
_TRIES = 8  # for a start that is within a share


@widened()
def find_front(model: Any, tokenizer: Any, plan: FrontSearch, *, orders: Mapping[str, Sequence[int]] | None = None,
               folder: Path | None = None, source: str = "", watch: Callable[[Progress], bool] | None = None,
               training: Callable[[TrainingProgress], None] | None = None, tell: Watch = unwatched) -> Front:
    """Search, and value the front on the test split of the task, or on held-out text.

    `orders` are those that a super-network was trained with; without any they are made as the plan says. Trials, and what is solved or
    trained for them, are written to `folder` at once; called again with equal arguments, the search goes on from there. `watch` is told
    how far the search is, `training` how far the training of a sub-network, and `tell` how far is what comes before and behind. What is
    interrupted has no baselines. Raises RecipeError when the parts do not go together, KeyboardInterrupt before anything has values.
    """
    clock, read, weights = Clock(), _checked(model, plan, folder), _weights_of(model)
    return_memory()
    with clock("ordering"):
        scores = importance(model, tokenizer, plan, read, tell)
        order = dict(orders) if orders is not None else descending(scores)
    with ExitStack() as stack:
        home = folder or Path(stack.enter_context(TemporaryDirectory(prefix="prunus-")))
        with clock("making weights"):
            genome, made = _genome(model, tokenizer, plan, read, order, home, tell)
        starts = _starts(genome, scores)
        alone = _alone(model, tokenizer, plan, read, genome.units, (folder, training, clock)) if folder and plan.training else None
        seen, unseen, protocols, length = (on_task(model, tokenizer, read, genome.units, alone) if read else
                                           on_text(model, tokenizer, plan, genome.units, stack, alone))
        with clock("measuring latency"):
            latency = _latency(model, genome.units, (plan.batch, length), folder) if "latency" in plan.objectives else None
        judge, other = (Judge(model, genome.units, plan.objectives, quality, length, latency) for quality in (seen, unseen))
        genome = replace(genome, told=lambda candidate: judge.told(genome.kept(candidate), genome.levels(candidate)))
        with clock("searching"):
            identity = fingerprint(*(str(plain(part)) for part in (plan.task, plan.text, plan.space)), str(order), str(starts),
                                   Latency.place_of(model), *weight_norms(model), *protocols, *([alone.identity] if alone else []),
                                   *made, *([str(asdict(latency))] if latency else []))
            found = explore(genome, plan.searcher, lambda question: _values(judge, genome, question), plan.objectives,
                            plan.evaluations, plan.seed, starts=starts, log=folder / "trials.jsonl" if folder else None,
                            identity=identity, watch=_watching(alone, genome, watch))
        with clock("valuing the front"):
            trials = [*(trial for trial in found.front if not trial.failed), _dense(found, genome)]
            held = [_held(other, genome, trial) for trial in watched(trials, "valuing the front", tell)]
        beside = {} if found.interrupted else _beside(model, tokenizer, plan, read, genome.units, (judge, other), clock, tell)
    clock.seconds |= {"training": alone.seconds} if alone else {"searching": clock.seconds["searching"] + found.before}
    if alone and not found.interrupted:
        alone.keep([(genome.kept(trial.candidate), trial.resource) for trial in trials])
    best = set(front(held[:-1]).tolist())
    points = [Point(trial.candidate, trial.values, values, index not in best, trial.resource)
              for index, (trial, values) in enumerate(zip(trials, held, strict=True))]
    return Front(plan, source, tuple(points[:-1]), points[-1], len(found.trials), sum(bool(trial.failed) for trial in found.trials),
                 protocols, {name: tuple(map(int, value)) for name, value in order.items()}, clock.seconds,
                 environment(model, str(next(model.parameters()).device), source), found.interrupted, beside, weights)


def check_searched(model: Any, found: Front, source: str) -> None:
    """Refuse a model that is not the one of which a front says how good its sub-networks are. Raises RecipeError."""
    if _weights_of(model) != found.weights:
        raise RecipeError(f"model '{source}': its weights are not those that were searched. Name the model that was (--model), or search "
                          "again.")


def _weights_of(model: Any) -> str:
    """The same in whatever precision a model was loaded."""
    return fingerprint(*weight_norms(model, torch.bfloat16))


def _values(judge: Judge, genome: Architectures, asked: Question | Trial) -> tuple[float, ...]:
    return judge(genome.kept(asked.candidate), genome.levels(asked.candidate), asked.resource)


def _held(judge: Judge, genome: Architectures, trial: Trial) -> tuple[float, ...]:
    """On held-out data; infinite where there are no values, so that others dominate it there. Raises like the judge of the dense model."""
    try:
        return _values(judge, genome, trial)
    except PrunusError:
        if trial.candidate == genome.largest:
            raise
        return (math.inf,) * len(trial.values)


def _checked(model: Any, plan: FrontSearch, folder: Path | None) -> Labelled | None:
    """The task, if there is one. Raises RecipeError and CorpusError."""
    check_weights(model)
    read = plan.task.read() if plan.task else None
    if read is None and not predicts_next(model):
        raise RecipeError("search: this model does not predict the next token, so text cannot value it. Name a task (--task).")
    if read is None and (plan.order != "none" or plan.refit or plan.training or isinstance(plan.space, Mixed)
                         or set(plan.baselines) - {"layerdrop"}):
        check_apart("calibration", plan.calibration.text(), "search", plan.text.text())
    for name in (name for name in plan.baselines if name not in BASELINES):
        check_loss(find("criteria", name)(), f"baseline {name!r}", "rfp", model)
    if plan.training and folder is None:
        raise RecipeError("search: sub-networks that are trained by themselves need a folder to be kept in. Name one.")
    return read


def _alone(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None, units: Units, place: tuple[Any, Any, Clock]) -> Alone:
    """Trains sub-networks on the training split of the task, or on calibration text."""
    assert plan.training is not None
    folder, watch, clock = place
    data = encoded(read, "train", model, tokenizer) if read else plan.calibration.tokens(tokenizer, model, plan.seed)
    found = Alone(model, units, plan.training, data, getattr(plan.searcher, "longest", 0), folder / FOLDER, watch, clock)
    found.check()
    return found


def _watching(alone: Alone | None, genome: Architectures, watch: Callable[[Progress], bool] | None) -> Callable[[Progress], bool]:
    """Ends a search without a dense model, and deletes the weights of what was trained by itself and has left the front; those of the
    dense model are valued again."""
    gone: set[int] = set()

    def told(progress: Progress) -> bool:
        _dense(progress.found, genome)
        if alone:
            _tidy(alone, genome, progress.found, gone)
        return watch(progress) if watch else True

    return told


def _tidy(alone: Alone, genome: Architectures, found: Exploration, gone: set[int]) -> None:
    for index in set(range(len(found.trials))) - set(front(found.values).tolist()) - gone:
        gone.add(index)
        trial = found.trials[index]
        if trial.candidate != genome.largest:
            alone.forget(genome.kept(trial.candidate), trial.resource)


def _dense(found: Exploration, genome: Architectures) -> Trial:
    """The trial of the dense model, the longest where there are several. Raises RecipeError where it has no values, and
    KeyboardInterrupt where it was interrupted."""
    dense = max((trial for trial in found.trials if trial.candidate == genome.largest),
                key=lambda trial: (not trial.failed, trial.resource), default=None)
    if dense is None:
        raise KeyboardInterrupt
    if dense.failed:
        raise RecipeError(f"search: the dense model itself has no values: {dense.failed}")
    return dense


def _latency(model: Any, units: Units, batch: tuple[int, int], folder: Path | None) -> Latency:
    """Measured, or as it was measured when the search began."""
    known = Latency.read(folder / "latency.json", batch, Latency.place_of(model)) if folder else None
    if known:
        return known
    words, chance = model.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    found = Latency.measured(model, units, torch.randint(words, batch, generator=chance))
    if folder:
        found.write(folder / "latency.json")
    return found


def genome_of(model: Any, space: Any, orders: Mapping[str, Sequence[int]], thin: Thin | None = None,
              fits: Fits | None = None) -> Architectures:
    """The sub-networks of a model; those of `mixed` need the weights at its levels, and those of a search that refits its fits. Raises
    RecipeError where the orders are of another model."""
    anatomy = describe(model)
    counts = {site.name: site.count for site in channels_of(anatomy)}
    for name, order in orders.items():
        if sorted(order) != list(range(counts.get(name, -1))):
            raise RecipeError(f"{name}: the order of its channels is of another model.")
    found: Architectures = space.over(Units(anatomy, {name: torch.tensor(order) for name, order in orders.items()}, thin, fits))
    return found


def _genome(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None, order: Mapping[str, Sequence[int]],
            folder: Path, tell: Watch) -> tuple[Architectures, list[str]]:
    """The sub-networks, with the weights that are made for them, and hashes of these."""
    thin = _solved(model, tokenizer, plan, read, folder)
    fits, made = None, [entry.sha256 for entry in thin.store.entries.values()] if thin else []
    if plan.refit:
        tokens, anatomy, identity = tokens_of(model, tokenizer, plan, read), describe(model), _read_by(model, plan)
        fits = Fits.build(folder / FITS, model, anatomy, channels_of(anatomy), tokens, identity, Placement.of(model),
                          together(tokens.shape[1]), tell)
        made = [identity]
    return genome_of(model, plan.space, order, thin, fits), made


def thin_of(model: Any, space: Any, folder: Path) -> Thin | None:
    """The weights that a search solved in its folder; None of a space that has no levels. Raises LoadError."""
    if not isinstance(space, Mixed):
        return None
    sites = channels_of(describe(model))
    store = LevelStore.known(folder / LEVELS, [name for site in sites for name in site.matrices], space.sparsities)
    return Thin.counted(store, model, sites)


def _solved(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None, folder: Path) -> Thin | None:
    """The weights of all branches at the levels of a space, of the training split or of calibration text; what is there is used again."""
    space, anatomy = plan.space, describe(model)
    if not isinstance(space, Mixed):
        return None
    channels, solver = channels_of(anatomy), space.solver
    ours = {name for site in channels for name in site.matrices}
    shape = resolved(Unstructured(), solver)
    sites = {site: shape for site in anatomy.sites("linear") if isinstance(site, LinearSite) and site.name in ours}
    home = folder / LEVELS
    check_room(home, planned_bytes(list(sites), space.sparsities, next(model.parameters()).element_size()))
    identity = fingerprint(str(plain(solver)), _read_by(model, plan))
    tokens, loss = seen_by(solver, f"solver {type(solver).__name__}", "sparsegpt", model, tokenizer, plan, read, list(sites))
    store = LevelStore.build(home, model, anatomy, sites, tokens, solver, space.sparsities, identity, Placement.of(model),
                             together(tokens.shape[1]), loss=loss)
    return Thin.counted(store, model, channels)


def fits_of(model: Any, plan: FrontSearch, folder: Path) -> Fits | None:
    """What a search that refits has collected in its folder; None of one that does not. Raises LoadError."""
    return Fits.known(folder / FITS, channels_of(describe(model))) if plan.refit else None


def _read_by(model: Any, plan: FrontSearch) -> str:
    """A hash of what a model is and reads, when it is solved or fitted."""
    return fingerprint(str(plain(plan.task or plan.calibration)), str(plan.seed), *weight_norms(model))


@widened()
def repair(model: Any, tokenizer: Any, units: Units, kept: Kept, recovery: Recovery, text: Calibration, seed: int = 0,
           watch: Watch = unwatched) -> Sequence[str]:
    """Zero the channels that go, and repair what stays, by text; to be extracted afterwards. Gives what the recovery has to say. Raises
    RecipeError, before anything is changed, for a family that the recovery cannot repair."""
    placement = Placement.of(model)
    tokens = text.tokens(tokenizer, model, seed)
    batch = together(tokens.shape[1])
    recovery.check(model, units.anatomy, tokens, placement, batch)
    dense = units.clear(model, kept)
    return recovery.recover(model, units.anatomy, units.gone(kept), dense, tokens, placement, batch, watch)


def _starts(genome: Architectures, scores: Mapping[str, Tensor]) -> list[Candidate]:
    """What the channels' scores say of several sizes, where all channels compete; the search begins with these."""
    if not scores or genome.nearest is None:
        return []
    found = (_within(genome, genome.nearest, scores, share) for share in _SHARES)
    return [candidate for candidate in dict.fromkeys(found) if any(candidate)]


def _within(genome: Architectures, nearest: Callable[[Kept], Candidate], scores: Mapping[str, Tensor], share: float) -> Candidate:
    """The largest within a share, which people pick by: a space knows some numbers of channels, and what it has for a share may be more."""
    asked = share
    for _ in range(_TRIES):
        found = nearest(least(genome.units, scores, asked))
        surplus = genome.remaining(found) - share
        if surplus <= 0:
            break
        asked -= surplus
    return found


def _beside(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None, units: Units, judges: tuple[Judge, Judge],
            clock: Clock, tell: Watch) -> dict[str, tuple[Point, ...]]:
    """What ways that need no search find, valued as the front is. What they look at is looked at once."""
    derived = set(plan.baselines) & {"heads", "rfp"}
    with clock("derivatives of baselines"):
        gradients = derivatives(model, tokenizer, plan, read, units.sites, tell) if derived else {}
    batches = training_batches(model, tokenizer, read) if read and "rfp" in derived else []

    def found(name: str) -> list[Kept]:
        match name:
            case "layerdrop":
                return first_layers(units)
            case "heads":
                return fewest_heads(units, {site: rows.abs().mean(0) for site, rows in gradients.items()})
            case "rfp":
                return [retraining_free(units, gradients, share) for share in _SHARES]
            case criterion:
                importance = scores_by(criterion, model, tokenizer, plan, read, units.sites)
                return [least(units, importance, share) for share in _SHARES]

    def valued(name: str, kept: Kept) -> Point | None:
        scales: dict[str, Tensor] = {}
        if name == "rfp" and batches:
            teacher = retraining_free(units, gradients, units.remaining(kept) ** 0.5)
            scales = factors(units, rescaled(model, units, kept, teacher, batches))
        try:
            with gated(model, scales):
                return Point((), judges[0](kept), judges[1](kept), False)
        except PrunusError:  # a size that this way has none for, such as one without any attention
            return None

    points: dict[str, tuple[Point, ...]] = {}
    for name in plan.baselines:
        with clock(f"baseline {name}"):
            sizes = found(name)
            points[name] = tuple(point for kept in watched(sizes, f"baseline {name}", tell) if (point := valued(name, kept)))
    return points


