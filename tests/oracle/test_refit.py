"""Refit, and the least squares that ALPS shares with it, against closed forms and torch's own solver."""

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from prunus.criteria.magnitude import Magnitude
from prunus.granularity import NM, Columns, Granularity, Tile, Unstructured
from prunus.least_squares import fit_support
from prunus.lookup import find
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT

from ..problems import generator, inputs, problem

SHAPES: list[Granularity] = [Unstructured("row"), Unstructured("matrix"), NM(2, 4), Tile(2, 4), Columns(1), Columns(4)]


def by_rows(weight: Tensor, mask: Tensor, x: Tensor, damping: float) -> Tensor:
    """argmin |X (v - w)|^2 / tokens + damping mean |v - w|^2 for every row, by torch.linalg.lstsq on its support."""
    x, weight = x.double() / len(x) ** 0.5, weight.double()
    level = (damping * x.square().sum(0).mean()).sqrt()
    rows = torch.cat([x, level * torch.eye(x.shape[1], dtype=torch.float64)])
    best = torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        if kept.any():
            best[row, kept] = torch.linalg.lstsq(rows[:, kept], rows @ weight[row]).solution
    return best


@pytest.mark.parametrize("granularity", SHAPES, ids=str)
@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("tokens", [200, 6])
def test_it_is_least_squares_row_by_row(granularity: Granularity, damping: float, tokens: int) -> None:
    asked = problem(0, granularity=granularity, tokens=tokens)
    found = Refit(Magnitude(), damping).solve(asked)
    best = by_rows(asked.weight, found.mask, inputs(0, 24, tokens), damping)
    assert float((found.weight - best).abs().max()) <= 1e-3 * float(best.abs().max())
    damped = asked.stats.damped(damping).double()

    def error(weight: Tensor) -> float:
        lost = weight.double() - asked.weight
        return float(((lost @ damped) * lost).sum())

    assert error(found.weight) <= error(best) * (1 + 1e-5)


@pytest.mark.parametrize("granularity", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_refitting_is_never_worse_than_masking(seed: int, granularity: Granularity) -> None:
    """A law, not a tendency: the masked weight is one of the candidates."""
    asked = problem(seed, granularity=granularity)
    found = Refit(Magnitude(), damping=1e-6).solve(asked)
    assert asked.error(found.weight) <= asked.error(asked.weight * found.mask) * (1 + 1e-5)


def test_more_kept_is_never_worse() -> None:
    errors = []
    for sparsity in (0.9, 0.7, 0.5, 0.3, 0.1):
        asked = problem(1, sparsity=sparsity)
        errors.append(asked.error(Refit(Magnitude(), damping=1e-6).solve(asked).weight))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("rows", [2, 4])
def test_rows_that_share_a_support_are_solved_exactly_in_a_step(rows: int) -> None:
    """However few steps conjugate gradients would have; numpy's own least squares says what is exact."""
    x, weight = inputs(5).double(), problem(5).weight.double()
    gram = x.T @ x / len(x)
    mask = (torch.rand(12 // rows, 24, generator=generator(5)) > 0.5).repeat_interleave(rows, 0)[torch.randperm(12, generator=generator(6))]
    found = fit_support(weight, mask, gram, steps=1)
    for row, kept in enumerate(mask):
        best = numpy.linalg.lstsq(x[:, kept].numpy(), (x @ weight[row]).numpy(), rcond=None)[0]
        assert abs(found[row, kept].numpy() - best).max() <= 1e-8
        assert (found[row, ~kept] == 0).all()


def test_supports_of_their_own_are_not_solved_row_by_row() -> None:
    """Of one row in twelve the support is another's too: conjugate gradients it is, and one step is not enough."""
    x, weight = inputs(5).double(), problem(5).weight.double()
    gram = x.T @ x / len(x)
    mask = torch.rand(12, 24, generator=generator(7)) > 0.5
    mask[1] = mask[0]
    one, many = fit_support(weight, mask, gram, steps=1), fit_support(weight, mask, gram)
    assert float((one - many).abs().max()) > 1e-3
    assert float((many - by_rows(weight, mask, x, 0.0)).abs().max()) <= 1e-5


@pytest.mark.parametrize("granularity", [Unstructured("row"), Unstructured("matrix"), NM(2, 4)], ids=str)
def test_sparsegpt_with_a_refit_ends_at_least_squares_on_its_own_support(granularity: Granularity) -> None:
    asked = problem(6, granularity=granularity)
    plain = SparseGPT(damping=0.01).solve(asked)
    found = SparseGPT(damping=0.01, refit_steps=200, refit_tolerance=1e-6).solve(asked)
    assert torch.equal(found.mask, plain.mask)
    best = by_rows(asked.weight, found.mask, inputs(6, 24), 0.01)
    assert float((found.weight - best).abs().max()) <= 1e-3 * float(best.abs().max())
    assert asked.error(found.weight) < 0.99 * asked.error(plain.weight)


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e-19])
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_singular_gram_and_tiny_numbers_leave_no_wild_weight(tokens: int, scale: float) -> None:
    """A direction that no input has is left alone, and so is what is too small to be multiplied: begun again where it ended, all that a
    residual says is rounding."""
    x, weight = inputs(5, tokens=tokens), problem(5).weight
    gram, mask = x.T @ x, torch.rand(12, 24, generator=generator(7)) > 0.5
    gram = gram / gram.diagonal().sqrt() / gram.diagonal().sqrt()[:, None]
    found = weight * scale * mask
    for _ in range(3):
        found = fit_support(weight * scale, mask, gram, found, steps=40, tolerance=1e-3)
    found = found / scale
    assert float(found.abs().max()) <= 10 * float(weight.abs().max())


def test_no_support_at_all_gives_zero() -> None:
    gram = torch.eye(4, dtype=torch.float64)
    weight = torch.ones(3, 4, dtype=torch.float64)
    assert (fit_support(weight, torch.zeros(3, 4, dtype=torch.bool), gram) == 0).all()
    mask = torch.tensor([[True] * 4, [False] * 4, [True, False, True, False]])
    assert torch.allclose(fit_support(weight, mask, gram), weight * mask)


@pytest.mark.parametrize("start", ["zero", "masked", "solution"])
def test_the_answer_does_not_depend_on_where_the_search_begins(start: str) -> None:
    x, weight = inputs(2).double(), problem(2).weight.double()
    gram = x.T @ x / len(x)  # not of the statistics, which are in float32
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    mask = weight.abs() > weight.abs().median()
    best = by_rows(weight, mask, x, 0.01)
    begin = {"zero": torch.zeros_like(weight), "masked": weight * mask, "solution": best}[start]
    found = fit_support(weight, mask, gram, begin, tolerance=1e-10)
    assert float((found - best).abs().max()) <= 1e-6 * float(best.abs().max())


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_badly_conditioned_grams_are_solved_to_the_tolerance(condition: float) -> None:
    """A Gram with eigenvalues from 1 to 1 / condition; the residual on the support says how far from the optimum."""
    asked = problem(3, 16, 40)
    basis = torch.linalg.qr(asked.stats.gram.double()[:40, :40])[0]
    gram = basis @ torch.diag(torch.logspace(0, -torch.log10(torch.tensor(condition)), 40, dtype=torch.float64)) @ basis.T
    weight, mask = asked.weight.double(), asked.weight.abs() > 0.6
    found = fit_support(weight, mask, (gram + gram.T) / 2)
    residual = ((weight - found) @ gram * mask).norm()
    assert float(residual) <= 1e-5 * float((weight @ gram * mask).norm())


@pytest.mark.parametrize(("name", "level"), [("refit", "mean"), ("alps", "median")])
@pytest.mark.parametrize("width", [1, 4])
def test_whole_columns_end_at_the_least_squares_solution_on_those_that_are_kept(name: str, level: Any, width: int) -> None:
    solver: Any = find("solvers", name)()
    asked = problem(4, granularity=Columns(width), sparsity=0.5)
    found = solver.solve(asked)
    kept, gram = found.mask[0], asked.stats.damped(solver.damping, level).double()
    best = torch.zeros(12, 24, dtype=torch.float64)
    best[:, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ asked.weight.double().T).T
    assert float((found.weight - best).abs().max()) <= 1e-4 * float(best.abs().max())
