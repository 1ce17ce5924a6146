"""Agents of Stable-Baselines3 as strategies: the library's own loop runs in a thread, and stops at every question."""

import math
import queue
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from ..errors import MissingExtra, RecipeError
from .space import Candidate, Query, Space, Trial

__all__ = ["AgentState", "Feature", "Reward", "ask", "begin", "check", "needs_errors", "tell"]

Reward = Literal["difference", "ratio", "local", "terminal"]
Feature = Literal["depth", "remaining", "size", "error", "unit"]


class _Stop(Exception):
    """Ends an agent's loop from within its environment."""


class Worker:
    """One agent that learns. It runs only while it is asked for its next question, with random generators of its own.

    The library seeds the generators of the whole process; here they are exchanged at every switch, so that nobody else
    notices, and the agent draws the same numbers whatever happens between its questions.
    """

    def __init__(self, learn: Callable[[Callable[[Candidate, bool], float]], None], share: float) -> None:
        self._learn = learn
        self._share = share  # of the search text, for all its questions
        self._questions: queue.Queue[Query | BaseException] = queue.Queue()
        self._answers: queue.Queue[float | None] = queue.Queue()
        self.generators: Generators | None = None  # None until it has drawn
        self._thread = threading.Thread(target=self._run, daemon=True)

    def question(self, answer: float | None = None) -> Query:
        """Let the agent go on, with the answer to its last question, until it has another one."""
        with _exchanged(self):
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._answers.put(answer)
            found = self._questions.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End the thread."""
        if self._thread.is_alive():
            self._answers.put(None)
            self._thread.join()

    def _run(self) -> None:
        try:
            self._learn(self._value)
        except _Stop:
            return
        except BaseException as error:
            self._questions.put(error)

    def _value(self, candidate: Candidate, partial: bool) -> float:
        self._questions.put(Query(candidate, self._share, partial=partial))
        answer = self._answers.get()
        if answer is None:
            raise _Stop
        return answer


Generators = tuple[Any, Any, Tensor]  # of random, numpy and torch


def _generators() -> Generators:
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state()


def _restore(states: Generators) -> None:
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])


@contextmanager
def _exchanged(worker: Worker | None = None) -> Iterator[None]:
    """The process's generators as the worker left them, and afterwards as everybody else did."""
    others = _generators()
    if worker and worker.generators:
        _restore(worker.generators)
    try:
        yield
    finally:
        if worker:
            worker.generators = _generators()
        _restore(others)


@dataclass(frozen=True)
class AgentState:
    """The agent, its question that is open, and what it has found."""

    first: Candidate
    worker: Worker
    query: Query | None = None  # None until the first candidate is valued
    best: float = math.inf  # of its whole candidates, on its share of the text
    waiting: float | None = None  # the answer that it gets once its best candidate is valued on the whole text

    def close(self) -> None:
        """End the agent."""
        self.worker.close()


def needs_errors(strategy: Any) -> bool:
    """Whether the game asks for the error of every site at every level."""
    return strategy.reward == "local" or "error" in strategy.features


def check(strategy: Any) -> None:
    """Refuse a game that cannot be played. Raises RecipeError."""
    if not 0 < strategy.share <= 1 or not 0 < strategy.width < 1 or strategy.scale <= 0:
        raise RecipeError(f"share = {strategy.share:g}, width = {strategy.width:g}, scale = {strategy.scale:g}: expected a share of the "
                          "search text in (0, 1], a width in (0, 1) and a scale above 0.")


def begin(strategy: Any, space: Space, first: Candidate, seed: int) -> AgentState:
    """The state before anything is valued; `strategy.agent(library, environment, seed)` makes what learns.

    `strategy` says how the game goes: per, width, reward, features, scale, share. Raises MissingExtra when the libraries are not there.
    """
    try:
        with warnings.catch_warnings(), _exchanged():  # some library draws a number when it is imported
            warnings.simplefilter("ignore")
            import stable_baselines3

            from .pruning_env import PruningEnv
    except ImportError:
        raise MissingExtra("strategies that learn by reinforcement", "search") from None

    def environment(value: Callable[[Candidate, bool], float]) -> PruningEnv:
        return PruningEnv(space, value, first, strategy.per, strategy.width, strategy.reward, strategy.features, strategy.scale)

    environment(lambda candidate, partial: 0.0).reset()  # refuses here, not in the thread
    worker = Worker(lambda value: strategy.agent(stable_baselines3, environment(value), seed).learn(10**9), strategy.share)
    return AgentState(first, worker)


def ask(state: AgentState) -> list[Query]:
    """The first candidate, then whatever the agent wants to know; the best on a share of the text also on all of it."""
    if state.query is None:
        return [Query(state.first)]
    return [state.query if state.waiting is None else Query(state.query.candidate)]


def tell(state: AgentState, trials: Sequence[Trial]) -> AgentState:
    """Let the agent learn from the answer until it asks again."""
    (trial,) = trials
    if state.query is None:
        return replace(state, query=state.worker.question())
    if state.waiting is not None:
        return replace(state, query=state.worker.question(state.waiting), waiting=None)
    value = min(trial.value, 100.0)  # agents cannot learn from infinity
    if trial.share < 1 and not state.query.partial and value < state.best:
        return replace(state, best=value, waiting=value)
    return replace(state, query=state.worker.question(value))
