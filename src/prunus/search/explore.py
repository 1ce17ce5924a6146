"""The search for a front: ask, value, tell, write down, until so many candidates have been valued."""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from ..errors import MissingExtra, RecipeError
from ..files import fingerprint
from ..widening import widened
from .genome import Genome
from .pareto import front, hypervolume
from .searchers import Question, Searcher, Trial
from .space import Array, Candidate

__all__ = ["Exploration", "Progress", "Value", "explore"]

_HOPELESS = 10  # failures, and nothing else: the search is given up

Value = Callable[[Question], Sequence[float]]


@dataclass(frozen=True)
class Exploration:
    """What a search has found."""

    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]  # in the order of the questions
    interrupted: bool = False  # by the person, before all evaluations were made
    before: float = field(default=0.0, compare=False)  # seconds that trials took which an earlier call had made

    @property
    def values(self) -> Array:
        """Of every trial and objective; infinite where a trial failed."""
        return numpy.array([trial.values for trial in self.trials])

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other dominates, by the first objective."""
        return tuple(sorted((self.trials[index] for index in front(self.values)), key=lambda trial: trial.values))


@dataclass(frozen=True)
class Progress:
    """How far a search is."""

    found: Exploration
    evaluations: int  # in all
    hypervolume: float  # of the front, as a share of the box that the first candidates span, widened by a tenth


def explore(genome: Genome, searcher: Searcher, value: Value, objectives: Sequence[str], evaluations: int = 100, seed: int = 0,
            parallel: int = 1, starts: Sequence[Candidate] = (), log: Path | None = None, identity: str = "",
            watch: Callable[[Progress], bool] | None = None) -> Exploration:
    """Value the largest, the smallest and the middle sub-network and those of `starts`, and then what the searcher asks for, until
    `evaluations` are made or no candidate is left.

    `value` gives the objectives of a question, smaller is better; with `parallel` > 1 as many questions are asked at a time, and it
    is called from as many threads. When it raises, or a value is no finite number, the trial is written down as failed and the
    search goes on; RecipeError is raised when all of the first ten fail. What the machine lacks (a file, memory, a package) is no
    candidate's failure: it ends the search, and is raised. Every trial is appended to `log` (JSONL) at once, and read
    back from there: a search that is called again with the same arguments, or with more evaluations, goes on with the identical
    trials. `identity` says what the values depend on besides, such as model and task; the log of another search is a RecipeError.
    `watch` is told after every answer how far it is, and says whether to go on. An interrupted search gives back what it has.
    """
    _check(objectives, evaluations, parallel)
    middle = tuple((low + high) // 2 for low, high in zip(genome.smallest, genome.largest, strict=True))
    grace = getattr(searcher, "grace", 0)
    pending = [Question(candidate, grace) for candidate in dict.fromkeys((genome.largest, genome.smallest, middle, *starts))]
    state = searcher.init(genome, seed)
    book = _opened(log, {"objectives": list(objectives), "searcher": repr(searcher), "seed": seed, "parallel": parallel,
                         "space": fingerprint(repr(genome.sizes)), "identity": identity})
    trials: tuple[Trial, ...] = ()
    found = Exploration(tuple(objectives), trials)
    try:
        while len(trials) < evaluations and (pending := pending or searcher.ask(state, parallel)):
            asked, pending = pending[:parallel], pending[parallel:]
            answers = _answers(value, asked[: evaluations - len(trials)], len(objectives), book)
            state, trials = searcher.tell(state, answers), (*trials, *answers)
            found = Exploration(tuple(objectives), trials)
            if len(trials) >= min(evaluations, _HOPELESS) and all(trial.failed for trial in trials):
                raise RecipeError(f"all of the first {len(trials)} candidates failed. The first: {trials[0].failed}")
            if watch and not watch(Progress(found, evaluations, _share(found.values))):
                break
    except KeyboardInterrupt:
        found = replace(found, interrupted=True)
    if not found.interrupted and all(trial.failed for trial in trials):
        raise RecipeError(f"all of the {len(trials)} candidates that there are failed. The first: {trials[0].failed}")
    return replace(found, before=math.fsum(trial.seconds for trial in trials if (trial.candidate, trial.resource) in book.known))


def _check(objectives: Sequence[str], evaluations: int, parallel: int) -> None:
    if len(objectives) < 2 or len(set(objectives)) < len(objectives):
        raise RecipeError(f"objectives = {', '.join(objectives)}: expected two or more, all different.")
    if evaluations < 1 or parallel < 1:
        raise RecipeError(f"evaluations = {evaluations}, parallel = {parallel}: expected at least 1 of each.")


def _share(values: Array) -> float:
    """The hypervolume of the front in the box of the first three candidates with values, which is widened by a tenth at its worst end."""
    known = values[numpy.isfinite(values).all(1)][:3]
    if not len(known):
        return 0.0
    low, high = known.min(0), known.max(0)
    corner = high + 0.1 * (high - low)
    return hypervolume(values, corner.tolist()) / (float(numpy.prod(corner - low)) or 1.0)


def _answers(value: Value, questions: Sequence[Question], objectives: int, book: "_Book") -> list[Trial]:
    """In the order of the questions, which are answered at the same time."""
    if len(questions) == 1:
        return [_answer(value, questions[0], objectives, book)]
    pool = ThreadPoolExecutor(len(questions))
    try:
        return list(pool.map(lambda question: _answer(value, question, objectives, book), questions))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted batch still finishes, and writes down, what has begun


@widened()  # each of the threads
def _answer(value: Value, question: Question, objectives: int, book: "_Book") -> Trial:
    """From the log, or from `value`."""
    known = book.known.get((question.candidate, question.resource))
    if known is not None:
        return known
    start = time.perf_counter()
    values: tuple[float, ...] = ()
    try:
        values = tuple(float(number) for number in value(question))
        failed = "" if len(values) == objectives and all(map(math.isfinite, values)) else f"values = {values}"
    except (OSError, MemoryError, torch.OutOfMemoryError, MissingExtra):  # of the machine: the next candidate would fail as well
        raise
    except Exception as error:  # whatever it is, it is of this candidate, and is written down
        failed = f"{type(error).__name__}: {error}"
    trial = Trial(question.candidate, (math.inf,) * objectives if failed else values, question.resource,
                  time.perf_counter() - start, failed)
    book.add(trial)
    return trial


@dataclass(frozen=True)
class _Book:
    """The trials on disk."""

    file: Path | None
    known: dict[tuple[Candidate, int], Trial]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, trial: Trial) -> None:
        """One line, as soon as it is known."""
        if self.file is None:
            return
        values = None if trial.failed else list(trial.values)
        line = json.dumps({"candidate": list(trial.candidate), "resource": trial.resource, "values": values,
                           "seconds": trial.seconds, "failed": trial.failed})
        with self.lock, self.file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _opened(file: Path | None, head: dict[str, Any]) -> _Book:
    """What an interrupted search has written. Raises RecipeError when it was another search."""
    if file is None:
        return _Book(None, {})
    if not (file.exists() and file.stat().st_size):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(head) + "\n", encoding="utf-8")
        return _Book(file, {})
    known: dict[tuple[Candidate, int], Trial] = {}
    try:
        first, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        there = json.loads(first)
        differs = [key for key in head if there[key] != head[key]]
    except (ValueError, KeyError, TypeError):
        raise RecipeError(f"{file}, line 1: is not the head of a search's trials. Name another folder, or delete this one.") from None
    if differs:
        raise RecipeError(f"{file}: holds the trials of another search ({differs[0]} = {there[differs[0]]}, here "
                          f"{head[differs[0]]}). Name another folder, or delete this one.")
    if lines and not lines[-1].endswith("\n"):  # cut off when the search was interrupted
        os.truncate(file, file.stat().st_size - len(lines.pop().encode()))
    for number, line in enumerate(lines, 2):
        try:
            trial = _read(json.loads(line), len(head["objectives"]))
            known[trial.candidate, trial.resource] = trial
        except (ValueError, KeyError, TypeError):
            raise RecipeError(f"{file}, line {number}: is no trial; the file is damaged. Delete it to begin the search again.") from None
    return _Book(file, known)


def _read(row: dict[str, Any], objectives: int) -> Trial:
    values = tuple(map(float, row["values"])) if not row["failed"] else (math.inf,) * objectives
    if len(values) != objectives:
        raise ValueError
    return Trial(tuple(row["candidate"]), values, row["resource"], row["seconds"], row["failed"])
