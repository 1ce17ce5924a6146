"""Solvers: which weights of one matrix stay, and what they become. One file each; the file name is the name."""

from typing import ClassVar, Protocol, runtime_checkable

from ..problem import LayerProblem, LayerSolution
from ..stats import Needs

__all__ = ["Solver"]


@runtime_checkable
class Solver(Protocol):
    """Prunes one matrix.

    A frozen dataclass whose fields are its hyper-parameters. `solve` is pure: it never writes to the problem,
    gives the same answer to the same problem, reaches exactly `snap(sparsity)`, and returns a weight that is 0
    outside the mask. It works with dead inputs, fewer tokens than inputs and a matrix that is already sparse.
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
