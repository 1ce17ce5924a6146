"""A whole MLP to prune, and the answer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .auxiliary import Between
from .problem import LayerProblem, LayerSolution

__all__ = ["MLPProblem", "MLPSolution", "Tokens"]

Tokens = Iterator[tuple[Float[Tensor, "tokens in"], Float[Tensor, "tokens out"]]]


@dataclass(frozen=True)
class MLPProblem:
    """Prune an MLP so that it gives what it is to give: y = W f(V x + c) + b, where V may be two matrices, one below the other.

    The problems say what is asked of each matrix, and hold its dense weight. Those of the first matrices share the moments of what the
    MLP reads; the last one has none, as what it reads depends on the others.
    """

    first: tuple[LayerProblem, ...]  # V: one matrix, or gate and up
    last: LayerProblem  # W
    biases: tuple[Float[Tensor, "_"] | None, ...]  # c and b of the dense model, by matrix; None where a matrix has none
    between: Between  # f
    tokens: Callable[[], Tokens]  # what it reads, and what it is to give, in float32 and a few tokens at a time
    start: tuple[LayerSolution, ...]  # of its matrices, in the same order, each solved alone


@dataclass(frozen=True)
class MLPSolution:
    """The matrices in the problem's order; and the squared distance of what the MLP gives, over the square of what it is to give."""

    matrices: tuple[LayerSolution, ...]
    error: float
    alone: float  # that of the problem's start; never less
