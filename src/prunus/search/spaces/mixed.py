"""Heads and units of every block by itself, and how sparse the weights of each branch are."""

from dataclasses import dataclass
from functools import cached_property

from ...criteria import loss_needs
from ...errors import RecipeError
from ...granularity import Unstructured
from ...solvers import Solver
from ...solvers.sparsegpt import SparseGPT
from ..genome import Architectures, prefixes
from ..space import Candidate
from ..subnetwork import Kept, Units
from ..thin import Levels

__all__ = ["Mixed"]


@dataclass(frozen=True)
class Mixed:
    """Two variables for every branch: how many of its heads (or key/value groups) or MLP channels stay, as in `medium`, and how sparse
    the matrices are that it has.

    Depth, width and sparsity in one. Every matrix is solved once at every level, as wide as in the dense model, and channels are left
    out of that; of the weights that are left as many are 0 as lie there. Zeros may be anywhere: they count in `params`, but not in
    `flops`, `latency` and `memory`, as they are stored and computed with.
    Weights that a solver has changed are not trained together: a super-network is trained in `medium`, with as many steps, and then
    searched in this space.
    """

    steps: int = 0  # numbers of channels to choose from beside 0, evenly spaced; 0: every number
    levels: int = 3  # of sparsity, evenly spaced, from dense matrices on
    sparsest: float = 0.7  # the last level, the fraction of the weights of a matrix that is 0
    solver: Solver = SparseGPT()  # which weights are 0, and what the others become

    def __post_init__(self) -> None:
        if self.steps < 0 or not 2 <= self.levels < 256 or not 0 < self.sparsest < 1:
            raise RecipeError(f"steps = {self.steps}, levels = {self.levels}, sparsest = {self.sparsest:g}: expected no negative number of "
                              "steps, 2 to 255 levels, and a sparsity between 0 and 1. Without levels, use medium.")
        if (needs := loss_needs(self.solver)) and needs.channels:
            raise RecipeError(f"solver {type(self.solver).__name__}: reads the loss by channel, and levels are of matrices. Use sparsegpt "
                              "or alps.")
        if Unstructured not in self.solver.supports:
            raise RecipeError(f"solver {type(self.solver).__name__}: does not make zeros anywhere in a matrix. Use sparsegpt, alps, or a "
                              "criterion.")

    @cached_property
    def sparsities(self) -> tuple[float, ...]:
        """Of the levels, ascending from 0."""
        return tuple(round(self.sparsest * level / (self.levels - 1), 6) for level in range(self.levels))

    def over(self, units: Units) -> Architectures:
        if units.thin is None:
            raise RecipeError("space mixed: the levels of its weights are not solved here. Search in it with a model that is trained.")
        widths = prefixes(units, self.steps)

        def levels(candidate: Candidate) -> Levels:
            return {site.name: self.levels - 1 - value for site, value in zip(units.sites, candidate[1::2], strict=True)}

        def nearest(kept: Kept) -> Candidate:
            return tuple(value for width in widths.nearest(kept) for value in (width, self.levels - 1))  # type: ignore[misc]

        return Architectures(units, tuple(size for width in widths.sizes for size in (width, self.levels)), (1, 0) * len(widths.sizes),
                             lambda candidate: widths.kept(candidate[::2]), nearest=nearest, levels=levels)
