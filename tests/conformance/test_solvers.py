"""The laws that every solver obeys with every granularity that it supports."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from prunus.errors import CalibrationError
from prunus.granularity import Columns, Granularity, Unstructured, snap
from prunus.problem import LayerProblem
from prunus.solvers import solve_all
from prunus.solvers.sparsegpt import SparseGPT
from prunus.stats import InputStats

from ..problems import SHAPES, assert_same, generator, inputs, problem, solver_shapes, solvers, sparsity_of, stats_of

every_shape = pytest.mark.parametrize(("solver", "granularity"), solver_shapes())
every_solver = pytest.mark.parametrize("solver", [pytest.param(solver, id=name) for name, solver in solvers()])


def assert_lawful(solver: Any, asked: LayerProblem) -> Any:
    """The exact count is removed, zeros are where the mask says, and all numbers are finite."""
    solution = solver.solve(asked)
    shape = tuple(asked.weight.shape)
    removed = int((~solution.mask).sum())
    assert removed == round(snap(asked.sparsity, shape, asked.granularity) * asked.weight.numel())
    assert (solution.weight[~solution.mask] == 0).all()
    assert torch.isfinite(solution.weight).all()
    assert solution.weight.dtype == torch.float32
    return solution


@every_shape
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77, 0.999])
def test_reaches_exactly_what_snap_says_and_is_zero_outside_the_mask(solver: Any, granularity: Granularity,
                                                                      sparsity: float) -> None:
    assert_lawful(solver, problem(1, granularity=granularity, sparsity=sparsity_of(granularity, sparsity)))


@every_shape
def test_the_zeros_have_the_shape_that_was_asked_for(solver: Any, granularity: Granularity) -> None:
    mask = assert_lawful(solver, problem(2, granularity=granularity)).mask
    name = type(granularity).__name__
    if name == "NM":
        assert mask.view(-1, granularity.m).sum(1).unique().tolist() == [granularity.n]
    elif name == "Tile":
        rows, columns = granularity.rows, granularity.columns
        tiles = mask.view(12 // rows, rows, 24 // columns, columns).float().mean(dim=(1, 3))
        assert set(tiles.unique().tolist()) == {0.0, 1.0}
    elif name == "Columns":
        groups = mask.view(12, -1, granularity.width)
        assert torch.equal(groups, groups[:1, :, :1].expand_as(groups))
    elif granularity == Unstructured("row"):
        assert mask.sum(1).unique().tolist() == [24 - math.ceil(0.6 * 24)]


@every_shape
def test_leaves_the_problem_untouched(solver: Any, granularity: Granularity) -> None:
    asked = problem(3, granularity=granularity)
    weight, stats = asked.weight.clone(), copy.deepcopy(asked.stats)
    solver.solve(asked)
    assert torch.equal(asked.weight, weight)
    assert asked.stats.tokens == stats.tokens
    for moment in ("mean", "power", "gram"):
        assert torch.equal(getattr(asked.stats, moment), getattr(stats, moment))


@every_shape
def test_sparsity_zero_is_the_identity_and_shares_no_memory(solver: Any, granularity: Granularity) -> None:
    asked = problem(4, granularity=granularity, sparsity=0.0)
    solution = solver.solve(asked)
    assert solution.mask.all()
    assert torch.equal(solution.weight, asked.weight)
    assert solution.weight.data_ptr() != asked.weight.data_ptr()


@every_shape
def test_the_same_problem_has_the_same_answer_bit_for_bit(solver: Any, granularity: Granularity) -> None:
    shared = problem(5, granularity=granularity)
    first = solver.solve(shared)
    assert_same(solver.solve(shared), first)  # with the factorisations that the first call left in the statistics
    assert_same(solver.solve(problem(5, granularity=granularity)), first)


@every_shape
def test_permuting_rows_permutes_the_answer(solver: Any, granularity: Granularity) -> None:
    """Rows of a tile move together. Sums over rows come in another order, hence the tolerance; no saliencies are equal."""
    together = getattr(granularity, "rows", 1)
    order = torch.randperm(12 // together, generator=generator(6))
    rows = (order[:, None] * together + torch.arange(together)).flatten()
    plain = problem(6, granularity=granularity)
    moved = problem(6, granularity=granularity, weight=plain.weight[rows])
    expected, found = solver.solve(plain), solver.solve(moved)
    assert torch.equal(found.mask, expected.mask[rows])
    size = float(expected.weight.abs().max())
    assert float((found.weight - expected.weight[rows]).abs().max()) <= 1e-4 * size


@every_shape
@pytest.mark.parametrize("factor", [2.0**-10, 8.0])
def test_scaling_the_weight_scales_the_answer_exactly(solver: Any, granularity: Granularity, factor: float) -> None:
    """A power of two: every float operation scales exactly, so only a hidden absolute threshold can break this."""
    plain = problem(7, granularity=granularity)
    expected = solver.solve(plain)
    found = solver.solve(problem(7, granularity=granularity, weight=plain.weight * factor))
    assert torch.equal(found.mask, expected.mask)
    size = float(expected.weight.abs().max())
    assert float((found.weight / factor - expected.weight).abs().max()) <= 1e-5 * size


@every_shape
@pytest.mark.parametrize("factor", [2.0**-8, 16.0])
def test_scaling_the_inputs_changes_nothing(solver: Any, granularity: Granularity, factor: float) -> None:
    x = inputs(8)
    expected = solver.solve(problem(8, granularity=granularity, x=x))
    assert_same(solver.solve(problem(8, granularity=granularity, x=x * factor)), expected, tolerance=1e-5)


def dead_inputs(seed: int) -> torch.Tensor:
    x = inputs(seed)
    x[:, [0, 5, 23]] = 0
    return x


HARD = {
    "dead inputs": {"x": dead_inputs(9)},
    "all inputs dead": {"x": torch.zeros(50, 24)},
    "one token": {"x": inputs(9, tokens=1)},
    "fewer tokens than inputs": {"x": inputs(9, tokens=7)},
    "two equal inputs": {"x": inputs(9)[:, [0, 0, *range(2, 24)]]},
    "one huge input": {"x": inputs(9) * torch.tensor([1e4] + [1.0] * 23)},
    "all weights zero": {"weight": torch.zeros(12, 24)},
    "a zero row": {"weight": torch.randn(12, 24, generator=generator(9)) * (torch.arange(12) != 3)[:, None]},
    "equal weights": {"weight": torch.ones(12, 24)},
    "tiny weights": {"weight": torch.randn(12, 24, generator=generator(9)) * 1e-15},
}


@every_shape
@pytest.mark.parametrize("case", HARD)
def test_works_with(case: str, solver: Any, granularity: Granularity) -> None:
    assert_lawful(solver, problem(9, granularity=granularity, **HARD[case]))


@every_shape
def test_without_damping_a_singular_gram_is_solved_or_refused_by_site(solver: Any, granularity: Granularity) -> None:
    """Nothing else: no library's own error, no number that is not finite."""
    if "damping" not in type(solver).__dataclass_fields__:
        pytest.skip("knows no damping")
    for tokens in (1, 7):
        asked = problem(9, tokens=tokens, granularity=granularity)
        refused = ""
        try:
            assert_lawful(replace(solver, damping=0.0), asked)
        except CalibrationError as error:
            refused = str(error)
        assert not refused or refused.startswith("blocks.3.down: Gram matrix not positive definite")


@every_shape
@pytest.mark.parametrize("damping", [0.0, 1e-7])
def test_with_a_tiny_penalty_a_singular_gram_is_solved_or_refused_by_site(solver: Any, granularity: Granularity, damping: float) -> None:
    if "rho" not in type(solver).__dataclass_fields__:
        pytest.skip("knows no penalty")
    refused = ""
    try:
        assert_lawful(replace(solver, damping=damping, rho=1e-9), problem(9, tokens=7, granularity=granularity))
    except CalibrationError as error:
        refused = str(error)
    assert not refused or refused.startswith("blocks.3.down: Gram matrix not positive definite")


@every_shape
def test_a_weight_that_is_already_sparse_enough_stays_as_it_is(solver: Any, granularity: Granularity) -> None:
    """Zeros in the shape that is asked for cost nothing, so no solver has a reason to remove anything else."""
    first = solver.solve(problem(10, granularity=granularity))
    again = solver.solve(problem(10, granularity=granularity, weight=first.weight))
    gram = stats_of(inputs(10)).gram
    difference = again.weight - first.weight
    lost = float(((difference @ gram) * difference).sum())
    assert lost <= 1e-6 * float(((first.weight @ gram) * first.weight).sum())


@every_shape
def test_one_row_and_one_group_of_inputs_work(solver: Any, granularity: Granularity) -> None:
    rows = getattr(granularity, "rows", 1)
    width = 2 * (getattr(granularity, "m", 0) or getattr(granularity, "columns", 0) or getattr(granularity, "width", 1))
    assert_lawful(solver, problem(11, rows, width, granularity=granularity))


@every_shape
def test_wide_matrices_cross_every_internal_boundary(solver: Any, granularity: Granularity) -> None:
    """264 columns are more than two blocks of 128, and no multiple of them."""
    assert_lawful(solver, problem(12, 4, 264, 600, granularity=granularity))


@every_solver
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_site(solver: Any, bad: float) -> None:
    asked = problem(13)
    asked.weight[4, 7] = bad
    with pytest.raises(CalibrationError, match=r"^blocks\.3\.down: 1 of its 288 weights are not finite"):
        solver.solve(asked)


@every_solver
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_statistics_that_are_not_finite_are_refused_by_site(solver: Any, bad: float) -> None:
    if solver.needs == "nothing":
        pytest.skip("needs no statistics")
    x = inputs(14)
    x[0, 2] = bad
    with pytest.raises(CalibrationError, match=r"^blocks\.3\.down: 1 of 24 inputs are not finite"):
        solver.solve(problem(14, x=x))


@every_solver
def test_no_token_at_all_is_refused_by_site(solver: Any) -> None:
    asked = problem(15)
    empty = InputStats(24, name="blocks.3.down")
    if solver.needs == "nothing":
        pytest.skip("needs no statistics")
    with pytest.raises(CalibrationError, match=r"^blocks\.3\.down: no calibration token"):
        solver.solve(LayerProblem(asked.weight, empty, asked.granularity, 0.5, "blocks.3.down"))


@every_solver
def test_the_declared_needs_are_enough(solver: Any) -> None:
    shape = next(shape for shape in SHAPES if type(shape) in solver.supports)
    asked = problem(16, granularity=shape, sparsity=0.5)
    least = replace(asked, stats=stats_of(inputs(16), solver.needs))
    assert_same(solver.solve(least), solver.solve(asked), 1e-6)


@every_solver
def test_scope_is_row_or_matrix(solver: Any) -> None:
    assert solver.scope in ("row", "matrix")


@every_shape
def test_problems_with_the_same_inputs_have_the_answers_that_each_has_alone(solver: Any, granularity: Granularity) -> None:
    first = problem(1, granularity=granularity, sparsity=sparsity_of(granularity, 0.6))
    weights = [torch.randn(rows, first.weight.shape[1], generator=generator(rows)) for rows in (8, 20, 4)]
    shares = [first.sparsity, sparsity_of(granularity, 0.3), 0.0]
    asked = [first, *(replace(first, weight=weight, sparsity=share) for weight, share in zip(weights, shares, strict=True))]
    answers = [solution for solutions in solve_all(solver, asked) for solution in solutions]
    for alone, answer in zip(asked, answers, strict=True):
        assert_same(answer, solver.solve(alone), 1e-5)


def test_a_list_that_is_too_large_is_solved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    first = problem(1, granularity=Unstructured("matrix"))
    monkeypatch.setattr("prunus.solvers._TOGETHER", 2 * first.weight.numel())
    assert [len(solutions) for solutions in solve_all(SparseGPT(), [first] * 5)] == [2, 2, 1]
    other = replace(first, stats=stats_of(inputs(7, first.weight.shape[1])))
    assert [len(solutions) for solutions in solve_all(SparseGPT(), [first, other, other])] == [1, 2]


@pytest.mark.parametrize("solver", [pytest.param(solver, id=name) for name, solver in solvers() if getattr(solver, "ranks", False)])
def test_a_ranking_takes_the_place_of_the_criterion(solver: Any) -> None:
    ranking = torch.tensor([3.0, 1, 6, 2, 5, 4]).repeat_interleave(4)
    plain = problem(7, granularity=Columns(4, nearest=True), sparsity=0.5)
    ranked = replace(plain, ranking=ranking)
    assert torch.equal(assert_lawful(solver, ranked).mask, (ranking > 3).expand(12, 24))
    assert not torch.equal(solver.solve(plain).mask, solver.solve(ranked).mask)
