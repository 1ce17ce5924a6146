"""Cross and mutate a population that is sorted by dominance and kept apart (NSGA-II; Deb et al. 2002)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy

from ...errors import MissingExtra, RecipeError
from ..explored import Explored, changed, fresh
from ..genome import Genome
from ..pareto import front
from ..space import Array, Candidate
from . import Question, Trial

__all__ = ["NSGA2"]


@dataclass(frozen=True)
class State:
    """What is known, the population (an object of the library `pymoo`), and its children that are not all valued yet."""

    known: Explored
    algorithm: Any = None  # None until the first population is valued
    children: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class NSGA2:
    """Deb et al. 2002, by the library `pymoo`: simulated binary crossover and polynomial mutation, rounded to whole numbers.

    Departs from it: the first population is spread over all sizes; of more children than are looked at, those stay whose sizes are
    farthest from what the front has, as a size is known without a look; a child that is known already gets another value of one
    variable; a failed candidate counts as worse than all.
    """

    population: int = 10  # candidates per generation
    crossover: float = 0.9  # probability that two parents are crossed
    eta: float = 3.0  # of crossover and mutation: the larger, the closer children are to their parents
    brood: int = 2  # children that are made for every one that is looked at

    def __post_init__(self) -> None:
        if self.population < 2 or not 0 <= self.crossover <= 1 or self.eta <= 0 or self.brood < 1:
            raise RecipeError(f"population = {self.population}, crossover = {self.crossover:g}, eta = {self.eta:g}, brood = {self.brood}: "
                              "expected a population of at least 2, a probability, an eta above 0, and a brood of at least 1.")

    def init(self, genome: Genome, seed: int) -> State:
        try:
            import pymoo  # noqa: F401
        except ImportError:
            raise MissingExtra("searcher 'nsga2'", "search") from None
        return State(Explored(genome, seed))

    def ask(self, state: State, count: int) -> list[Question]:
        if state.algorithm is None:
            return state.known.spread(min(count, self.population - len(state.known.trials)))
        waiting = [child for child in state.children if child not in state.known.seen]
        return [Question(child) for child in waiting[:count]]

    def tell(self, state: State, trials: Sequence[Trial]) -> State:
        known = replace(state.known, trials=(*state.known.trials, *trials))
        if len(known.trials) < self.population or not known.seen.issuperset(state.children):
            return replace(state, known=known)
        if state.algorithm is None:
            algorithm = self._algorithm(known)
            _valued(algorithm, algorithm.ask(), known)
        else:
            algorithm = state.algorithm
            _valued(algorithm, _population(state.children), known)
        return State(known, algorithm, _children(algorithm, known, self.population, self.brood))

    def _algorithm(self, known: Explored) -> Any:
        from pymoo.algorithms.moo import nsga2
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair

        sizes = numpy.array(known.genome.sizes)
        algorithm = nsga2.NSGA2(self.population, sampling=numpy.array([trial.candidate for trial in known.trials]),
                                crossover=SBX(prob=self.crossover, eta=self.eta, vtype=float, repair=RoundingRepair()),
                                mutation=PM(eta=self.eta, vtype=float, repair=RoundingRepair()))
        algorithm.setup(Problem(n_var=len(sizes), n_obj=known.values.shape[1], xl=0, xu=sizes - 1, vtype=int), seed=known.seed,
                        termination=NoTermination())
        return algorithm


def _population(candidates: Sequence[Candidate]) -> Any:
    from pymoo.core.population import Population

    return Population.new(X=numpy.array(candidates))


def _valued(algorithm: Any, population: Any, known: Explored) -> None:
    """Tell the algorithm what its candidates are worth."""
    values = dict(zip((trial.candidate for trial in known.trials), _finite(known), strict=True))
    population.set("F", numpy.array([values[tuple(row)] for row in population.get("X").tolist()]))
    algorithm.tell(infills=population)


def _finite(known: Explored) -> Array:
    """Failures become worse than all in every objective."""
    good = known.values[known.answered]
    if not len(good):
        return numpy.zeros_like(known.values)
    return numpy.where(known.answered[:, None], known.values, 2 * good.max(0) - good.min(0) + 1)


def _children(algorithm: Any, known: Explored, count: int, brood: int) -> tuple[Candidate, ...]:
    """The next generation, all of them new."""
    rng, taken = known.rng(), set(known.seen)
    made = [found for found in (algorithm.ask() for _ in range(brood)) if found is not None]
    wanted = [tuple(int(value) for value in row) for found in made for row in found.get("X").tolist()]
    children: list[Candidate] = []
    for child in dict.fromkeys(wanted or [known.trials[-1].candidate]):  # the library gives up where nearly all is known
        new = changed(child, known.genome.sizes, taken, rng) if child in taken else child
        new = new or fresh(known.genome, taken, rng)
        if new is not None:
            taken.add(new)
            children.append(new)
    return _apart(children, known, count)


def _apart(children: Sequence[Candidate], known: Explored, count: int) -> tuple[Candidate, ...]:
    """So many of them, one after the other that whose size is farthest from those on the front and of those before it."""
    size = known.genome.remaining
    sizes = [size(known.trials[index].candidate) for index in front(known.values)]
    left: dict[Candidate, float] = {child: size(child) for child in children}
    chosen: list[Candidate] = []
    while left and len(chosen) < count:
        child = max(left, key=lambda child: min((abs(left[child] - other) for other in sizes), default=0.0))
        sizes.append(left.pop(child))
        chosen.append(child)
    return tuple(chosen)
