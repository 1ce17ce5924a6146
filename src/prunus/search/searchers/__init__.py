"""Searchers: which sub-networks an architecture search with several objectives looks at next. One file each; the file name is the name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..genome import Genome
from ..space import Candidate

__all__ = ["Question", "Searcher", "Trial"]


@dataclass(frozen=True)
class Question:
    """A candidate that a searcher wants valued."""

    candidate: Candidate
    resource: int = 0  # what the candidate is trained for before it is valued, such as epochs; 0 where candidates are not trained


@dataclass(frozen=True)
class Trial:
    """A question and its answer."""

    candidate: Candidate
    values: tuple[float, ...]  # of every objective, smaller is better; all infinite where there is no answer
    resource: int = 0
    seconds: float = 0.0  # that the answer took
    failed: str = ""  # why there is no answer


@runtime_checkable
class Searcher(Protocol):
    """Decides what to value next from what has been valued; it finds the front of all objectives at once.

    A frozen dataclass whose fields are its hyper-parameters; what it learns is in the state, a value that it gives back. It is told
    candidates that it did not ask for too: the first ones of every search. No question is asked twice, and equal seeds and equal
    trials give equal questions, so that an interrupted search, asked again with the trials it had, goes on as if nothing had
    happened. Objectives may have any scale. One with a `grace` trains every candidate by itself: its questions say for how long,
    `grace` says it of the first ones, and `longest` stands for the whole training. MissingExtra is raised by `init` when its library
    is not installed.
    """

    def init(self, genome: Genome, seed: int) -> Any:
        """The state before anything is valued."""
        ...

    def ask(self, state: Any, count: int) -> list[Question]:
        """What to value next, at most `count` of it at the same time; nothing when no candidate is left."""
        ...

    def tell(self, state: Any, trials: Sequence[Trial]) -> Any:
        """The state with more trials, in the order of their questions."""
        ...
