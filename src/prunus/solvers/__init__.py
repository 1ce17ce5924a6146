"""Solvers: which weights of one matrix stay, and what they become. One file each; the file name is the name."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..criteria import Criterion, saliency
from ..problem import LayerProblem, LayerSolution
from ..stats import Needs

__all__ = ["Solver", "saliency_of", "solve_all"]

_TOGETHER = 2**25  # weights that are solved together at most: 128 MiB in float32, some times over


@runtime_checkable
class Solver(Protocol):
    """Prunes one matrix.

    A frozen dataclass whose fields are its hyper-parameters. `solve` is pure: it never writes to the problem,
    gives the same answer to the same problem, reaches exactly `snap(sparsity)`, and returns a weight that is 0
    outside the mask. It works with dead inputs, fewer tokens than inputs and a matrix that is already sparse.
    One that chooses by a `criterion`, and by the problem's ranking where there is one, says so: `ranks = True`.
    One that can also solve a whole MLP has `solve_mlp(problem: MLPProblem) -> MLPSolution`, and is asked for that where a stage prunes
    all of its matrices, once each of them is solved alone.
    Raises CalibrationError, naming the site, when the statistics cannot be used.
    """

    supports: ClassVar[tuple[type, ...]]  # the granularities it can do

    @property
    def scope(self) -> str:
        """Where its paper lets weights compete when a recipe does not say: "row" or "matrix"."""
        ...

    @property
    def needs(self) -> Needs:
        """The least statistics it can live on."""
        ...

    def solve(self, problem: LayerProblem) -> LayerSolution:
        """The pruned weight and its mask."""
        ...


def saliency_of(problem: LayerProblem, criterion: Criterion) -> Float[Tensor, "out in"]:
    """How much each weight matters: what a criterion says, where the problem has no ranking."""
    if problem.ranking is None:
        return saliency(criterion, problem.weight, problem.stats, problem.loss)
    return problem.ranking.to(problem.weight).expand_as(problem.weight)


def solve_all(solver: Solver, problems: Sequence[LayerProblem]) -> Iterator[list[LayerSolution]]:
    """The answers in the order of the problems, each list as soon as it is there.

    A solver may have `solve_together(problems)`, for problems with the same inputs and granularity, when it can save work there;
    its answers are those of `solve`, to rounding. Others solve one problem after the other.
    """
    together: Any = getattr(solver, "solve_together", None)
    if together is None:
        yield from ([solver.solve(problem)] for problem in problems)
        return
    for _, alike in groupby(problems, key=lambda problem: (id(problem.stats), problem.granularity)):
        chunk: list[LayerProblem] = []
        for problem in alike:
            if chunk and sum(other.weight.numel() for other in (*chunk, problem)) > _TOGETHER:
                yield together(chunk)
                chunk = []
            chunk.append(problem)
        yield together(chunk)
