"""Train many candidates a little and the best of them longer (MO-ASHA; Schmucker et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from ...errors import RecipeError
from ..explored import Explored, begin, fresh, remember
from ..pareto import order
from . import Question, Trial

__all__ = ["ASHA"]


@dataclass(frozen=True)
class ASHA:
    """For candidates that are trained each: asynchronous successive halving (Li et al. 2020) that promotes by non-dominated order.

    Whoever is among the first 1/eta of a rung, and was not yet, is trained eta times as long; when nobody is, a new candidate
    is drawn. Every rung counts as an evaluation.
    """

    grace: int = 1  # resource of a new candidate, such as epochs
    eta: int = 3  # one of so many is promoted, to so many times the resource
    longest: int = 9  # resource of the last rung

    init, tell = begin, staticmethod(remember)

    def __post_init__(self) -> None:
        if self.grace < 1 or self.eta < 2 or self.longest < self.grace:
            raise RecipeError(f"grace = {self.grace}, eta = {self.eta}, longest = {self.longest}: expected a grace of at least 1, an eta "
                              "of at least 2, and a longest resource that is not below the grace.")

    @property
    def rungs(self) -> tuple[int, ...]:
        """The resources that candidates are trained for."""
        found = [self.grace]
        while found[-1] < self.longest:
            found.append(min(found[-1] * self.eta, self.longest))
        return tuple(found)

    def ask(self, state: Explored, count: int) -> list[Question]:
        rng, asked = state.rng(), [Question(trial.candidate, trial.resource) for trial in state.trials]
        known, taken = len(asked), set(state.seen)
        while len(asked) < known + count:
            question = self._promoted(state.trials, asked)
            if question is None:
                candidate = fresh(state.genome, taken, rng)
                if candidate is None:
                    break
                taken.add(candidate)
                question = Question(candidate, self.grace)
            asked.append(question)
        return asked[known:]

    def _promoted(self, trials: Sequence[Trial], asked: Sequence[Question]) -> Question | None:
        """From the highest rung that has somebody to promote."""
        for rung, following in reversed(list(zip(self.rungs, self.rungs[1:], strict=False))):
            here = [trial for trial in trials if trial.resource == rung]
            for index in _best(here)[: len(here) // self.eta]:
                question = Question(here[index].candidate, following)
                if not here[index].failed and question not in asked:
                    return question
        return None


def _best(trials: Sequence[Trial]) -> Any:
    return order(numpy.array([trial.values for trial in trials]))
