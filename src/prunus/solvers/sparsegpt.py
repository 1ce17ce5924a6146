"""Column by column, pushing each error into the columns still to come (Frantar & Alistarh 2023)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import RecipeError
from ..granularity import NM, Columns, Unstructured, keep_largest, keep_mask, removed_count
from ..least_squares import fit_support
from ..pivots import Pivoted
from ..problem import LayerProblem, LayerSolution
from ..stats import Needs

__all__ = ["SparseGPT"]

_INNER = 16  # columns between two matrix products; what is pushed inside is one matrix-vector product per column


@dataclass(frozen=True)
class SparseGPT:
    """Frantar & Alistarh 2023, Algorithm 1; whole columns by grouped OBS (Kurtic et al. 2023, section 3.1).

    Departs from the first: ranks instead of a threshold, so counts are exact; with row scope every row of a block
    gives its own share. Errors reach a column only when its turn comes, which changes the order of the sums alone.
    """

    damping: float = 0.01  # added to the Gram's diagonal, as a fraction of its mean
    block: int = 128  # columns whose mask is chosen together
    refit_steps: int = 0  # of conjugate gradients on the support at the end, at most; 0: none, as in the paper
    refit_tolerance: float = 1e-3  # of the residual, relative to the first

    needs: ClassVar[Needs] = "gram"
    scope: ClassVar[str] = "matrix"
    supports: ClassVar[tuple[type, ...]] = (Unstructured, NM, Columns)

    def __post_init__(self) -> None:
        least = min(self.refit_steps, self.refit_tolerance)
        if self.block < 1 or not self.damping >= 0 or least < 0:
            raise RecipeError(f"block = {self.block}, damping = {self.damping:g}, the least of the others = {least:g}: expected at least "
                              "one column, and nothing below 0.")

    def solve(self, problem: LayerProblem) -> LayerSolution:
        return self.solve_together([problem])[0]

    def solve_together(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """One sweep for matrices with the same inputs: as many small operations as for one of them."""
        for problem in problems:
            problem.check()
        stats, granularity = problems[0].stats, problems[0].granularity
        factor = stats.inverse_cholesky(self.damping)
        if isinstance(granularity, Columns):
            return [_eliminate(problem, factor, granularity) if problem.sparsity else problem.untouched() for problem in problems]
        sparse = [problem for problem in problems if problem.sparsity]
        if not sparse:
            return [problem.untouched() for problem in problems]
        sweep = _Sweep(sparse, factor)
        step = self.block
        if isinstance(granularity, NM):  # no group lies in two blocks
            step = max(step // granularity.m, 1) * granularity.m
        for start in range(0, len(sweep.work), step):
            sweep.block(start, min(start + step, len(sweep.work)))
        solved = map(self._refitted, sparse, sweep.solutions())
        return [next(solved) if problem.sparsity else problem.untouched() for problem in problems]

    def _refitted(self, problem: LayerProblem, solution: LayerSolution) -> LayerSolution:
        """A later column makes up for an earlier one's error, but never an earlier for a later: there is something left to gain."""
        if not self.refit_steps:
            return solution
        gram = problem.stats.shared(("sparsegpt", self.damping), lambda: problem.stats.damped(self.damping))
        weight = fit_support(problem.weight, solution.mask, gram, solution.weight, self.refit_steps, self.refit_tolerance)
        return LayerSolution(weight * solution.mask, solution.mask)


class _Sweep:
    """The state of one pass, on the transposed weights beside each other, so that a column of them lies together in memory.

    Rows of the factor are divided by their diagonal: the error of a pruned weight is then the weight itself.
    """

    def __init__(self, problems: Sequence[LayerProblem], factor: Tensor) -> None:
        diagonal = factor.diagonal()[:, None]
        self.problems = problems
        self.work = torch.cat([problem.weight for problem in problems]).T.contiguous()
        self.unit = factor / diagonal
        self.scale = diagonal.square()  # saliency = w^2 / scale
        self.pruned = torch.zeros_like(self.work)  # 1 where pruned
        self.error = torch.empty_like(self.work)
        self.granularity = problems[0].granularity

    def block(self, start: int, end: int) -> None:
        """Prune the columns from `start` to `end`, and push their errors into all later ones."""
        if not isinstance(self.granularity, NM):
            saliency = self.work[start:end].square() / self.scale[start:end]
            for problem, rows in self._parts():
                self.pruned[start:end, rows] = (~self._mask(problem, saliency[:, rows], start, end)).to(self.pruned)
        step = _INNER if not isinstance(self.granularity, NM) else max(_INNER // self.granularity.m, 1) * self.granularity.m
        for low in range(start, end, step):
            high = min(low + step, end)
            self._columns(low, high)
            self.work[high:end].addmm_(self.unit[low:high, high:end].T, self.error[low:high], alpha=-1)
        self.work[end:].addmm_(self.unit[start:end, end:].T, self.error[start:end], alpha=-1)

    def _parts(self) -> Iterator[tuple[LayerProblem, slice]]:
        """Every problem, and where its rows are."""
        start = 0
        for problem in self.problems:
            yield problem, slice(start, start + len(problem.weight))
            start += len(problem.weight)

    def _mask(self, problem: LayerProblem, saliency: Tensor, start: int, end: int) -> Tensor:
        """The kept weights of a block; quotas of the blocks add up to the exact total."""
        rows = saliency.shape[1]
        if self.granularity == Unstructured("row"):
            return keep_largest(saliency.T.contiguous(), end - start - self._quota(problem.sparsity, start, end, 1)).T
        flat = saliency.reshape(1, -1)
        return keep_largest(flat, flat.numel() - self._quota(problem.sparsity, start, end, rows)).view_as(saliency)

    def _quota(self, sparsity: float, start: int, end: int, rows: int) -> int:
        """How many of the weights of the columns from `start` to `end` go."""
        total = len(self.work)
        whole = removed_count(sparsity, rows * total)
        return whole * end // total - whole * start // total

    def _columns(self, low: int, high: int) -> None:
        for column in range(low, high):
            first = low
            if isinstance(self.granularity, NM):
                first = column - column % self.granularity.m
                if column == first:
                    self._choose(low, column, self.granularity)
            if column > first:
                self.work[column].addmv_(self.error[first:column].T, self.unit[first:column, column], alpha=-1)
            torch.mul(self.work[column], self.pruned[column], out=self.error[column])

    def _choose(self, low: int, column: int, granularity: NM) -> None:
        """Choose the n:m mask of the next group, once all earlier errors have arrived."""
        end = column + granularity.m
        if column > low:
            self.work[column:end].addmm_(self.unit[low:column, column:end].T, self.error[low:column], alpha=-1)
        saliency = self.work[column:end].square() / self.scale[column:end]
        self.pruned[column:end] = (~keep_mask(saliency.T, 0.5, granularity).T).to(self.pruned)

    def solutions(self) -> Iterator[LayerSolution]:
        """The weights without what was pruned."""
        self.work -= self.error
        for _, rows in self._parts():
            mask: Bool[Tensor, "out in"] = (self.pruned[:, rows] == 0).T.contiguous()
            yield LayerSolution(self.work[:, rows].T.contiguous() * mask, mask)


def _eliminate(problem: LayerProblem, factor: Float[Tensor, "in in"], granularity: Columns) -> LayerSolution:
    """Remove groups of columns, a few at a time, those first whose loss after the best update is least."""
    state = Pivoted.of(problem.weight, factor, granularity.width)
    gone = granularity.removed(problem.sparsity, problem.weight.shape[1])
    per_round = max(1, -(-gone // 64))
    for start in range(0, gone, per_round):
        state.move(state.cheapest(min(per_round, gone - start)))
    return LayerSolution(*state.solution(problem.weight))
