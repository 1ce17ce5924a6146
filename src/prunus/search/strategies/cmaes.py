"""Adapt a normal distribution over shares to what was good (CMA-ES; Hansen & Ostermeier 2001)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from ...allocation import Per
from ...errors import MissingExtra, RecipeError
from ..space import Candidate, Query, Space, Trial

__all__ = ["CMAES"]


@dataclass(frozen=True)
class State:
    """The distribution (an object of the library `cma`), and the points that were asked for last."""

    space: Space
    first: Candidate
    distribution: Any
    points: tuple[Any, ...] = ()
    begun: bool = False


@dataclass(frozen=True)
class CMAES:
    """Hansen & Ostermeier 2001, by the library `cma`, over one number per matrix, sublayer or block.

    The numbers are added to the shares of the first candidate, and the sums projected onto the shares that meet the budget.
    The nearest levels are what is asked for.
    """

    sigma: float = 1.0  # first standard deviation of the numbers, in levels
    population: int = 8  # candidates per generation
    per: Per = "block"  # what gets one number: matrix, sublayer or block

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.population < 4:
            raise RecipeError(f"sigma = {self.sigma:g}, population = {self.population}: expected a deviation above 0 and a "
                              "population of at least 4.")

    def init(self, space: Space, first: Candidate, seed: int) -> State:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says that it could not plot
                import cma
        except ImportError:
            raise MissingExtra("strategy 'cmaes'", "search") from None
        rng = numpy.random.default_rng(seed)
        size = len(space.groups(self.per))
        if size < 2:
            raise RecipeError("strategy 'cmaes' needs at least two numbers to choose. Use per = \"matrix\", or another strategy.")
        # its own generator: by default the library seeds the one that the whole process shares
        options = {"seed": numpy.nan, "randn": lambda *shape: rng.standard_normal(shape), "popsize": self.population, "verbose": -9,
                   "CMA_diagonal": size > 100}
        return State(space, first, cma.CMAEvolutionStrategy(numpy.zeros(size), self.sigma, options))

    def ask(self, state: State) -> list[Query]:
        if not state.begun:
            return [Query(state.first)]
        return [Query(state.space.departing(state.first, self.per, point)) for point in state.points]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        if state.begun:
            finite = [trial.value for trial in trials if trial.value != float("inf")]
            worst = max(finite, default=0.0) + 1.0
            state.distribution.tell(list(state.points), [min(trial.value, worst) for trial in trials])
        return State(state.space, state.first, state.distribution, tuple(state.distribution.ask()), begun=True)
