"""What the statistics of a stage are taken for: which outputs a matrix is to give, on which tokens, and in which order."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import RecipeError
from ..stats import InputStats, Needs

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """What a matrix is fitted to; for every solver, as only its problem is another.

    With `asymmetry` t the outputs aimed at are W (x + t (x' - x)), where the matrix W reads x in the model as it is pruned by
    then, and would read x' in the model as the stage found it (asymmetric calibration, Li et al. 2025). Among all matrices on x,
    W + t W D (G + damping)^-1 comes closest to them, with G = E[x x^T] and D = E[(x' - x) x^T], and the squared distance of any
    other is that one's and its own from that matrix: so that matrix is what a solver is given to prune, and what relative
    errors are of.
    """

    asymmetry: float = 0.0  # in [0, 1]; 0: the outputs of the matrix on what it reads; 1: those that it has in the dense model
    damping: float = 0.01  # where asymmetry is not 0: added to the Gram's diagonal, as a fraction of its mean
    fisher: bool = False  # weigh tokens by the squared norm of the loss's gradient at what their block gives
    true_sequential: bool = True  # later matrices of a block see the earlier ones pruned; false: all of them as they were

    def __post_init__(self) -> None:
        if not 0 <= self.asymmetry <= 1 or not self.damping >= 0:
            raise RecipeError(f"asymmetry = {self.asymmetry:g}, damping = {self.damping:g}: expected asymmetry in [0, 1], and no negative "
                              "damping.")

    @property
    def needs(self) -> Needs:
        """Of the inputs, whatever a solver needs."""
        return "gram" if self.asymmetry else "nothing"

    def goal(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        """The matrix whose outputs on what is read are nearest to those aimed at; `weight` itself without asymmetry."""
        if not self.asymmetry or stats.tokens == 0:
            return weight
        return torch.addmm(weight, weight, stats.drift(self.damping), alpha=self.asymmetry)
