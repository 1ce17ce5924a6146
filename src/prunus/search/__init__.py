"""Searching an allocation: what may be chosen, what it is worth, and which candidates to look at."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ..errors import RecipeError
from .channels import ChannelSpace
from .space import Candidate, Query, Space, Trial
from .strategies import Strategy

__all__ = ["Outcome", "search"]

Value = Callable[[Sequence[Query]], Sequence[Trial]]


@dataclass(frozen=True)
class Outcome:
    """What a search has found."""

    best: Trial  # of those valued on the whole search text
    trials: tuple[Trial, ...]  # in the order of the questions
    spent: float  # looks at the whole search text


def search(space: Space | ChannelSpace, strategy: Strategy, value: Value, first: Candidate, evaluations: float, seed: int = 0,
           watch: Callable[[float, Trial], bool] | None = None) -> Outcome:
    """Ask and tell until `evaluations` is spent; an answer costs the share of the search text it was found on.

    `watch` is told what has been spent and the best trial so far, and says whether to go on. With equal arguments and values
    the questions are the same, so a search is resumed by running it again with a `value` that remembers. Raises
    RecipeError when nothing may be spent, or when no candidate had a value.
    """
    if evaluations <= 0:
        raise RecipeError(f"evaluations = {evaluations:g}: expected more than 0.")
    state, spent = strategy.init(space, first, seed), 0.0
    trials: list[Trial] = []
    best: Trial | None = None
    with ExitStack() as stack:
        stack.callback(getattr(state, "close", lambda: None))  # what the first state holds, such as a thread
        while spent < evaluations:
            queries = strategy.ask(state)
            if not queries:  # it has nothing more to ask
                break
            answers = list(value(queries))
            state = strategy.tell(state, answers)
            trials += answers
            for query, answer in zip(queries, answers, strict=True):
                spent += answer.share
                if answer.share == 1 and not query.partial and (best is None or answer.value < best.value):
                    best = answer
            if watch and best is not None and not watch(min(spent, evaluations), best):
                break
    if best is None or best.value == float("inf"):
        raise RecipeError(f"none of {len(trials)} candidates has a value that is a number. Start from a lower sparsity.")
    return Outcome(best, tuple(trials), spent)
