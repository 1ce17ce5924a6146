"""SparseGPT against Algorithm 1 written out column by column, as in the paper, in float64."""

import pytest
import torch
from torch import Tensor

from prunus.granularity import NM, Columns, Granularity, Unstructured, keep_mask, removed_count
from prunus.solvers.sparsegpt import SparseGPT

from ..problems import problem


def textbook(weight: Tensor, gram: Tensor, damping: float, masks: "Masks") -> tuple[Tensor, Tensor]:
    """Frantar & Alistarh 2023, Algorithm 1 with B = 1: one column at a time, each error pushed into all columns to come."""
    work = weight.double().clone()
    damped = gram.double() + damping * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    mask = torch.ones_like(work, dtype=torch.bool)
    for column in range(work.shape[1]):
        masks.choose(mask, work, factor, column)
        error = torch.where(mask[:, column], 0.0, work[:, column] / factor[column, column])
        work[:, column:] -= error[:, None] * factor[column, column:]
    return work * mask, mask


class Masks:
    """When and how the mask of the columns to come is chosen (Algorithm 1, lines 7 and 8)."""

    def __init__(self, granularity: Granularity, sparsity: float, block: int = 128) -> None:
        self.granularity, self.sparsity = granularity, sparsity
        self.step = granularity.m if isinstance(granularity, NM) else block

    def choose(self, mask: Tensor, work: Tensor, factor: Tensor, column: int) -> None:
        if column % self.step:
            return
        out, width = work.shape
        end = min(column + self.step, width)
        saliency = (work[:, column:end] / factor.diagonal()[column:end]).square().float()
        if isinstance(self.granularity, NM):
            mask[:, column:end] = keep_mask(saliency, 0.5, self.granularity)
            return
        rows = out if self.granularity == Unstructured("matrix") else 1
        whole = removed_count(self.sparsity, rows * width)
        gone = whole * end // width - whole * column // width
        share = Unstructured("matrix") if rows > 1 else Unstructured("row")
        mask[:, column:end] = keep_mask(saliency, gone / (rows * (end - column)), share)


def assert_equals_textbook(solver: SparseGPT, asked: object) -> None:
    """Equal masks, but where two saliencies are closer than float32 can tell; equal weights on rows whose masks are equal."""
    found = solver.solve(asked)
    masks = Masks(asked.granularity, asked.sparsity, solver.block)
    weight, mask = textbook(asked.weight, asked.stats.gram, solver.damping, masks)
    same = (found.mask == mask).all(1)
    assert int((~same).sum()) <= 1, f"{int((~same).sum())} rows of {len(same)} have another mask"
    assert float((found.weight - weight)[same].abs().max()) <= 1e-3 * float(weight.abs().max())


@pytest.mark.parametrize("width", [24, 128, 264, 384])
@pytest.mark.parametrize("granularity", [Unstructured("matrix"), Unstructured("row"), NM(2, 4), NM(4, 8), NM(4, 6), NM(6, 8),
                                         NM(1, 3), NM(8, 24)], ids=str)
def test_it_is_algorithm_1(granularity: Granularity, width: int) -> None:
    if isinstance(granularity, NM) and width % granularity.m:
        pytest.skip(f"{width} is no multiple of {granularity.m}")
    assert_equals_textbook(SparseGPT(), problem(1, 8, width, 3 * width, granularity))


@pytest.mark.parametrize("block", [1, 7, 16, 24, 40, 1000])
@pytest.mark.parametrize("granularity", [Unstructured("matrix"), Unstructured("row"), NM(2, 4), NM(4, 6)], ids=str)
def test_blocks_of_any_size_push_every_error_once(granularity: Granularity, block: int) -> None:
    assert_equals_textbook(SparseGPT(block=block), problem(2, 8, 48, 200, granularity))


@pytest.mark.parametrize("sparsity", [0.1, 0.9])
@pytest.mark.parametrize("scope", ["row", "matrix"])
def test_any_sparsity(scope: str, sparsity: float) -> None:
    assert_equals_textbook(SparseGPT(), problem(3, 8, 264, 600, Unstructured(scope), sparsity))  # type: ignore[arg-type]


def best_on(weight: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """Least squares on whole columns, in closed form."""
    weight, gram = weight.double(), gram.double()
    best = torch.zeros_like(weight)
    best[:, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight.T).T
    return best


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_whole_columns_end_at_the_least_squares_solution_on_those_that_are_kept(width: int, sparsity: float) -> None:
    """Removing groups by the exact update one after the other is the same as one joint least squares problem."""
    asked = problem(4, 12, 32, 300, Columns(width), sparsity)
    found = SparseGPT().solve(asked)
    best = best_on(asked.weight, asked.stats.damped(0.01), found.mask[0])
    assert float((found.weight - best).abs().max()) <= 1e-4 * float(best.abs().max())


@pytest.mark.parametrize("seed", range(10))
def test_the_first_column_group_that_goes_is_the_one_whose_absence_costs_least(seed: int) -> None:
    asked = problem(seed, 12, 24, 300, Columns(3), 1 / 8)
    gram = asked.stats.damped(0.01).double()
    costs = []
    for group in range(8):
        kept = torch.ones(24, dtype=torch.bool)
        kept[group * 3 : group * 3 + 3] = False
        lost = asked.weight.double() - best_on(asked.weight, gram, kept)
        costs.append(float(((lost @ gram) * lost).sum()))
    gone = (~SparseGPT().solve(asked).mask[0]).nonzero().flatten()
    assert gone.tolist() == [3 * costs.index(min(costs)) + offset for offset in range(3)]
