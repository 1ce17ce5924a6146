"""The matrices of an MLP together: each in turn is fitted to what the others would need of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..auxiliary import Penalties, Reads, given
from ..errors import NotDefinite, RecipeError
from ..granularity import Columns
from ..least_squares import fit_support
from ..lookup import find
from ..mlp import MLPProblem, MLPSolution
from ..problem import LayerProblem, LayerSolution
from ..stats import InputStats, LossNeeds, Needs
from ..traits import total
from . import Solver, solve_all

__all__ = ["SparseLLM"]

_TOLERANCE = 1e-3  # of a refit's residual, relative to its first


@dataclass(frozen=True)
class SparseLLM:
    """Bai et al. 2024 ("SparseLLM: Towards Global Pruning"), with any solver of matrices inside; matrices outside of MLPs are solved by
    that one alone, and it also gives the MLP to begin with. The best MLP of all rounds stays, that one among them.

    In a round every token gets values z and p between the matrices, which start from the dense model's and lower
    alpha |z - m|^2 + beta |y - W p|^2 + gamma |p - f(z)|^2, with m what the pruned first matrices give; all three parts are shares of
    what they are in the dense model. The first matrices are then fitted to z. Departs from the paper in the last matrix, which is fitted
    not to p but to what it will read; in that what stays is refitted by least squares; and in that z and p of a few tokens at a time are
    computed, and none are kept.
    """

    inside: Solver = field(default_factory=lambda: find("solvers", "sparsegpt")())  # chooses which weights of a matrix stay
    rounds: int = 2  # through all matrices of an MLP
    sweeps: int = 2  # updates of z and p in a round
    alpha: float = 1.0  # weight of how far z is from what the first matrices give
    beta: float = 1.0  # weight of how far the output is from what it is to be
    gamma: float = 1.0  # weight of how far p is from what z makes of it
    damping: float = 0.1  # added to the Gram's diagonal, as a fraction of its mean, where a matrix is fitted
    refit_steps: int = 10  # conjugate gradient steps on the weights that stay, at most; 0: they are what the solver inside makes them

    needs: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.sweeps < 1 or min(self.refit_steps, self.damping) < 0:
            raise RecipeError(f"rounds = {self.rounds}, sweeps = {self.sweeps}, refit_steps = {self.refit_steps}, damping = "
                              f"{self.damping:g}: expected at least one round and sweep, and no negative steps or damping.")
        if not min(self.alpha, self.beta, self.gamma) > 0:
            raise RecipeError(f"alpha = {self.alpha:g}, beta = {self.beta:g}, gamma = {self.gamma:g}: expected all above 0.")
        if not self.supports:
            raise RecipeError(f"inside: {type(self.inside).__name__} does not prune single matrices. Use sparsegpt, alps, or a criterion.")

    @property
    def supports(self) -> tuple[type, ...]:
        """What the solver inside can do, but for whole columns, as those are rows of other matrices; nothing, if that solves MLPs too."""
        return () if hasattr(self.inside, "solve_mlp") else tuple(shape for shape in self.inside.supports if shape is not Columns)

    @property
    def scope(self) -> str:
        return self.inside.scope

    @property
    def loss_needs(self) -> LossNeeds | None:
        found: LossNeeds | None = getattr(self.inside, "loss_needs", None)
        return found

    def solve(self, problem: LayerProblem) -> LayerSolution:
        return self.inside.solve(problem)

    @property
    def solve_together(self) -> Any:
        return getattr(self.inside, "solve_together", None)

    def solve_mlp(self, problem: MLPProblem) -> MLPSolution:
        """The best of its start and of what every round gives."""
        penalties = self._penalties(problem)
        at = best = _At.of(problem, problem.start)
        alone = least = torch.inf
        for turn in range(self.rounds + 1):
            error, lacking = self._look(problem, at, penalties, turn < self.rounds)
            alone = error if turn == 0 else alone
            if error < least:  # not where it is no number
                best, least = at, error
            if turn == self.rounds or not alone > 0 or penalties is None:
                break
            at = self._round(problem, at, lacking)
        return MLPSolution(best.solutions, min(least, alone), alone)

    def _penalties(self, problem: MLPProblem) -> Penalties | None:
        """As shares of squares in the dense model; none where one of those is 0."""
        dense = _At.dense(problem)
        squares = torch.zeros(3, dtype=torch.float64)
        for x, y in problem.tokens():
            z = dense.gives(x)
            squares += torch.stack([values.square().sum() for values in (z, y, problem.between(z))]).cpu()
        shares = (squares / squares.sum()).tolist()
        if not min(shares) > 0:
            return None
        return Penalties(*(weight / share for weight, share in zip((self.alpha, self.beta, self.gamma), shares, strict=True)))

    def _look(self, problem: MLPProblem, at: "_At", penalties: Penalties | None, fitting: bool) -> tuple[float, Tensor]:
        """The relative error of an MLP; and E[(z - m) x^T], if it is to be fitted."""
        dense, between = _At.dense(problem), problem.between
        lacking, lost, whole, count = torch.zeros_like(dense.first), 0.0, 0.0, 0
        reads = Reads(at.last, penalties) if fitting and penalties else None
        for x, y in problem.tokens():
            m, aim = at.gives(x), y - at.outer
            lost += total((aim - between(m) @ at.last.T).square())
            whole += total(y.square())
            if reads is None or penalties is None:
                continue
            z = dense.gives(x)
            for _ in range(self.sweeps):
                z = given(between, z, reads(between(z), aim), m, penalties)
            lacking.addmm_((z - m).T, x)
            count += len(x)
        return (lost / whole if whole > 0 else 0.0), lacking / max(count, 1)

    def _round(self, problem: MLPProblem, at: "_At", lacking: Float[Tensor, "given in"]) -> "_At":
        """First matrices that come closer to z, and a last one for what they give."""
        goals = (at.first + self._mapped(lacking, problem.first[0].stats)).split([len(matrix.weight) for matrix in problem.first])
        first = self._solved([replace(matrix, weight=goal) for matrix, goal in zip(problem.first, goals, strict=True)])
        first = [_moved(solution, before) for solution, before in zip(first, at.solutions, strict=False)]  # m is what they give with biases
        half, dense = _At.of(problem, (*first, at.solutions[-1])), _At.dense(problem)
        reading = InputStats(dense.last.shape[1], "gram", dense.last.device, name=problem.last.name)
        wanting = torch.zeros_like(dense.last)
        for x, y in problem.tokens():
            read = problem.between(half.gives(x))
            reading.update(read)
            wanting.addmm_((y - dense.outer - read @ dense.last.T).T, read)
        goal = dense.last + self._mapped(wanting / reading.tokens, reading)
        return _At.of(problem, (*first, *self._solved([replace(problem.last, weight=goal, stats=reading)])))

    def _mapped(self, lacking: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        """E[g x^T] (G + damping)^-1: the change of a matrix that brings its output nearest to g more."""
        factor = stats.inverse_cholesky(self.damping)
        return lacking @ factor.T @ factor

    def _solved(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """By the solver inside; what stays is then the best on its support."""
        stats = problems[0].stats
        solutions = [solution for together in solve_all(self.inside, problems) for solution in together]
        if self.refit_steps:
            gram = stats.damped(self.damping)
            solutions = [self._refitted(*pair, gram) for pair in zip(problems, solutions, strict=True)]
        stats.forget()
        return solutions

    def _refitted(self, problem: LayerProblem, solution: LayerSolution, gram: Tensor) -> LayerSolution:
        try:
            weight = fit_support(problem.weight, solution.mask, gram, solution.weight, self.refit_steps, _TOLERANCE)
        except torch.linalg.LinAlgError:
            raise NotDefinite(problem.name, self.damping) from None
        return LayerSolution(weight, solution.mask, None if solution.bias is None else problem.shift(weight))


@dataclass(frozen=True)
class _At:
    """An MLP's matrices, as its forward pass has them."""

    solutions: tuple[LayerSolution, ...]  # none: those of the dense model
    first: Float[Tensor, "given in"]
    inner: Float[Tensor, "given"]
    last: Float[Tensor, "out read"]
    outer: Float[Tensor, "out"]

    @classmethod
    def of(cls, problem: MLPProblem, solutions: tuple[LayerSolution, ...]) -> "_At":
        weights = [solution.weight for solution in solutions]
        biases = [_total(bias, solution) for bias, solution in zip(problem.biases, solutions, strict=True)]
        return cls(solutions, torch.cat(weights[:-1]), torch.cat(biases[:-1]), weights[-1], biases[-1])

    @classmethod
    def dense(cls, problem: MLPProblem) -> "_At":
        return replace(cls.of(problem, tuple(matrix.untouched() for matrix in (*problem.first, problem.last))), solutions=())

    def gives(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens given"]:
        """What the first matrices give."""
        return torch.addmm(self.inner, x, self.first.T)


def _total(bias: Tensor | None, solution: LayerSolution) -> Tensor:
    """The bias that a matrix has; 0 where it has none, whatever the solver would add."""
    if bias is None:
        return solution.weight.new_zeros(len(solution.weight))
    return bias.to(solution.weight) if solution.bias is None else bias.to(solution.weight) + solution.bias


def _moved(solution: LayerSolution, before: LayerSolution) -> LayerSolution:
    """What a solver adds to a bias, to what was added before."""
    return solution if solution.bias is None or before.bias is None else replace(solution, bias=solution.bias + before.bias)
