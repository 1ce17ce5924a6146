"""Questions of a Gaussian process that has learned from the trials: what the searchers of Bayesian optimisation share."""

import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy

from ..errors import MissingExtra, RecipeError
from .explored import Explored, Propose, changed
from .genome import Genome
from .pareto import quantiles
from .searchers import Question
from .space import Array, Candidate

__all__ = ["check_startup", "prepared", "questions", "scores", "shares", "suggested"]

_MOST = 200  # variables that a question takes seconds for
_WIDE = 100.0  # the largest over the smallest of values whose order of magnitude is what matters


def prepared(name: str, genome: Genome, seed: int) -> Explored:
    """The state before anything is valued. Raises MissingExtra, and RecipeError when there are too many variables."""
    try:
        import optuna  # noqa: F401
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingExtra(f"searcher '{name}'", "search") from None
    if len(genome.sizes) > _MOST:
        raise RecipeError(f"searcher '{name}' models at most {_MOST} variables, and this space has {len(genome.sizes)}. "
                          "Use nsga2, morea or local, or a space with fewer.")
    return Explored(genome, seed)


def scores(known: Explored) -> Array:
    """Every objective as the model sees it, from 0, the best, to 1: by its logarithm where it spans two orders of magnitude; what is
    beyond the upper fence of a box plot is not told apart; and failures are the worst in all."""
    good = known.values[known.answered]
    if not len(good):
        return numpy.ones_like(known.values)
    found = numpy.where(known.answered[:, None], known.values, good.max(0))
    wide = (good.min(0) > 0) & (good.max(0) > _WIDE * good.min(0))
    found[:, wide] = numpy.log(found[:, wide])
    low, high = numpy.quantile(found[known.answered], (0.25, 0.75), axis=0)
    found = numpy.minimum(found, high + 1.5 * (high - low))
    found -= found.min(0)
    return found / numpy.where(found.max(0) > 0, found.max(0), 1.0)


def shares(known: Explored) -> Array:
    """Every objective as its quantile among the trials, so that sums of objectives reach every part of the front, whatever its shape
    (a weighted sum of plain values finds only where it bulges out); failures are the worst in all."""
    return numpy.where(known.answered[:, None], quantiles({"": known.values})[""], 1.0)


def check_startup(startup: int) -> None:
    """Refuse fewer candidates than a model can learn from. Raises RecipeError."""
    if startup < 2:
        raise RecipeError(f"startup = {startup}: expected at least 2.")


def questions(state: Explored, startup: int, count: int, propose: Propose) -> list[Question]:
    """What to value next: candidates of all sizes first, and then what is proposed."""
    if len(state.trials) < startup:
        return state.spread(min(count, startup - len(state.trials)))
    return state.questions(count, propose)


def suggested(state: Explored, values: Array, rng: random.Random, asked: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the largest expected improvement of `values`, a row for every trial; of one objective, or of the hypervolume of
    several. By Optuna's GPSampler; a neighbour of it when it is known. `asked` is being valued meanwhile."""
    with _quiet():
        import optuna

        # whole numbers are left to the model as intervals of a line: it searches lines much faster than numbers
        lines = {f"{index:04}": optuna.distributions.FloatDistribution(-0.5, size - 0.5)
                 for index, size in enumerate(state.genome.sizes) if size > 1}
        sampler = optuna.samplers.GPSampler(seed=rng.randrange(2**32), n_startup_trials=1)
        study = optuna.create_study(directions=["minimize"] * values.shape[1], sampler=sampler)

        def point(candidate: Candidate) -> dict[str, Any]:
            return {name: float(candidate[int(name)]) for name in lines}

        for trial, row in zip(state.trials, values.tolist(), strict=True):
            study.add_trial(optuna.create_trial(params=point(trial.candidate), distributions=lines, values=row))
        for candidate in asked:
            study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.RUNNING, params=point(candidate), distributions=lines))
        found = study.ask(lines).params
    sizes = state.genome.sizes
    candidate = tuple(min(max(round(found.get(f"{index:04}", 0.0)), 0), size - 1) for index, size in enumerate(sizes))
    taken = {*state.seen, *asked}
    return changed(candidate, sizes, taken, rng) if candidate in taken else candidate


@contextmanager
def _quiet() -> Iterator[None]:
    """The library says at every question what it does and what is experimental."""
    logger = logging.getLogger("optuna")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)
