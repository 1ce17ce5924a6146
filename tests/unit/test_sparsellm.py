"""An MLP solved as a whole is never worse than its matrices solved alone, and gives numbers, whatever it is given."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.auxiliary import Between
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.wanda import Wanda
from prunus.errors import RecipeError
from prunus.granularity import NM, Unstructured, snap
from prunus.mlp import MLPProblem
from prunus.problem import LayerProblem, LayerSolution
from prunus.recipe import build
from prunus.solvers import Solver
from prunus.solvers.alps import ALPS
from prunus.solvers.ladmm import LADMM
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT
from prunus.solvers.sparsellm import SparseLLM
from prunus.solvers.swaps import Swaps
from prunus.stats import InputStats

from ..problems import generator, inputs, stats_of

FORMS = {"relu": Between(nn.ReLU(), False), "gelu": Between(nn.GELU(), False), "silu, gated": Between(nn.SiLU(), True)}
every_form = pytest.mark.parametrize("between", FORMS.values(), ids=FORMS)
INSIDE = [SparseGPT(), ALPS(), LADMM(), Swaps(), Refit(), Mask(Wanda()), Mask(Magnitude())]
every_solver = pytest.mark.parametrize("inside", INSIDE, ids=["sparsegpt", "alps", "ladmm", "swaps", "refit", "wanda", "magnitude"])


def problem(between: Between, inside: Any = SparseGPT(), seed: int = 0, sparsity: float = 0.7, granularity: Any = Unstructured("row"),
            chunk: int = 64, biases: bool = True, x: Tensor | None = None, scale: float = 1.0) -> MLPProblem:
    """An MLP of 24, 32 and 16 with weights drawn by a seed, its matrices solved alone one after the other."""
    rng = generator(seed)
    x = inputs(seed, 24, 300) if x is None else x
    shapes = [(32, 24)] * (2 if between.gated else 1) + [(16, 32)]
    weights = [scale * torch.randn(shape, generator=rng) / shape[1]**0.5 for shape in shapes]
    offsets = [0.1 * torch.randn(shape[0], generator=rng) if biases else torch.zeros(shape[0]) for shape in shapes]
    stats = stats_of(x)
    first = [LayerProblem(weight, stats, granularity, sparsity, "up") for weight in weights[:-1]]
    alone = [inside.solve(matrix) for matrix in first]
    read = between(torch.cat([x @ solution.weight.T + bias for solution, bias in zip(alone, offsets, strict=False)], -1))
    last = LayerProblem(weights[-1], stats_of(read), granularity, sparsity, "down")
    alone.append(inside.solve(last))
    given = [x @ weight.T + bias for weight, bias in zip(weights[:-1], offsets, strict=False)]
    y = between(torch.cat(given, -1)) @ weights[-1].T + offsets[-1]
    return MLPProblem(tuple(first), replace(last, stats=InputStats(1, "nothing")), tuple(offsets) if biases else (None,) * len(shapes),
                      between, lambda: iter(zip(x.split(chunk), y.split(chunk), strict=True)), tuple(alone))


def error(problem: MLPProblem, solutions: tuple[LayerSolution, ...]) -> float:
    """Of all tokens at once, in float64."""
    x, y = (torch.cat(parts).double() for parts in zip(*problem.tokens(), strict=True))
    biases = [0.0 if bias is None else bias.double() for bias in problem.biases]
    *first, last = (solution.weight.double() for solution in solutions)
    z = torch.cat([x @ weight.T + bias for weight, bias in zip(first, biases, strict=False)], -1)
    return float((y - problem.between(z) @ last.T - biases[-1]).square().sum() / y.square().sum())


@every_solver
@every_form
def test_the_mlp_is_closer_than_its_matrices_alone_and_as_sparse(between: Between, inside: Any) -> None:
    asked = problem(between, inside)
    found = SparseLLM(inside).solve_mlp(asked)
    assert found.error == pytest.approx(error(asked, found.matrices), rel=1e-4)
    assert found.alone == pytest.approx(error(asked, asked.start), rel=1e-4)
    assert found.error < found.alone
    for solution in found.matrices:
        assert int((~solution.mask).sum()) == round(snap(0.7, tuple(solution.mask.shape), Unstructured("row")) * solution.mask.numel())
        assert not solution.weight[~solution.mask].any()


@every_form
@pytest.mark.parametrize("seed", range(20))
def test_no_run_of_twenty_gives_anything_but_numbers_or_is_worse_than_alone(between: Between, seed: int) -> None:
    """Dead inputs, fewer tokens than inputs, repeated tokens, and weights of any size, penalties of any size, by the seed."""
    x = inputs(seed, 24, (8, 60, 300)[seed % 3])
    if seed % 4 == 0:
        x[:, :3] = 0
    if seed % 5 == 0:
        x[1:] = x[:1]
    inside = Mask(Wanda()) if seed % 2 else SparseGPT()
    asked = problem(between, inside, seed, (0.7, 0.8)[seed % 2], x=x, scale=(1e-3, 1.0, 1e3)[seed // 3 % 3])
    solver = SparseLLM(inside, rounds=3, alpha=10.0**(seed % 5 - 2), gamma=10.0**(seed % 7 - 3))
    found = solver.solve_mlp(asked)
    assert all(bool(torch.isfinite(solution.weight).all()) for solution in found.matrices)
    assert error(asked, found.matrices) <= error(asked, asked.start) * (1 + 1e-5)


@every_form
def test_tokens_in_chunks_give_the_answer_of_all_at_once(between: Between) -> None:
    one, other = (SparseLLM().solve_mlp(problem(between, chunk=chunk)) for chunk in (300, 17))
    assert one.error == pytest.approx(other.error, rel=1e-3)
    for ours, theirs in zip(one.matrices, other.matrices, strict=True):
        assert torch.equal(ours.mask, theirs.mask)
        assert float((ours.weight - theirs.weight).abs().max()) < 1e-3 * float(ours.weight.abs().max())


@every_form
def test_n_of_m_stays_n_of_m(between: Between) -> None:
    found = SparseLLM().solve_mlp(problem(between, granularity=NM(2, 4), sparsity=0.5))
    assert found.error < found.alone
    for solution in found.matrices:
        assert solution.mask.view(-1, 4).sum(1).unique().tolist() == [2]


def test_more_rounds_are_never_worse() -> None:
    errors = [SparseLLM(rounds=rounds).solve_mlp(problem(FORMS["silu, gated"])).error for rounds in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_every_penalty_changes_the_answer() -> None:
    """In the code that was published with the paper some do not."""
    asked = problem(FORMS["silu, gated"])
    errors = {SparseLLM(**changes).solve_mlp(asked).error for changes in ({}, {"alpha": 3.0}, {"beta": 3.0}, {"gamma": 3.0})}
    assert len(errors) == 4


def test_solving_twice_gives_the_same_and_leaves_the_moments_as_they_were() -> None:
    """Damping that stays in the moments would grow from round to round."""
    asked = problem(FORMS["relu"])
    gram = asked.first[0].stats.gram.clone()
    one, other = (SparseLLM(rounds=4).solve_mlp(asked) for _ in range(2))
    assert torch.equal(asked.first[0].stats.gram, gram)
    for ours, theirs in zip(one.matrices, other.matrices, strict=True):
        assert torch.equal(ours.weight, theirs.weight)


def test_an_mlp_that_gives_nothing_and_one_of_which_nothing_goes_stay_as_they_are() -> None:
    silent = problem(FORMS["relu"], biases=False, scale=0.0)
    whole = problem(FORMS["relu"], sparsity=0.0)
    for asked in (silent, whole):
        found = SparseLLM().solve_mlp(asked)
        assert found.error < 1e-10
        for ours, start in zip(found.matrices, asked.start, strict=True):
            assert float((ours.weight - start.weight).abs().max()) < 1e-6


def test_biases_that_the_solver_inside_adds_are_counted() -> None:
    class Shifting(Mask):
        """What goes is made up for by the bias, in single matrices."""

        def solve(self, problem: LayerProblem) -> LayerSolution:
            solution = super().solve(problem)
            return replace(solution, bias=problem.shift(solution.weight))

    asked = problem(FORMS["gelu"], Shifting(Wanda()), x=inputs(0, 24, 300) + 1.0)
    found = SparseLLM(Shifting(Wanda())).solve_mlp(asked)
    shifted = replace(asked, biases=tuple(bias + solution.bias for bias, solution in zip(asked.biases, found.matrices, strict=True)))
    assert found.error == pytest.approx(error(shifted, found.matrices), rel=1e-4)
    assert found.error < found.alone


def test_matrices_outside_of_mlps_are_those_of_the_solver_inside() -> None:
    asked = problem(FORMS["relu"]).first[0]
    assert torch.equal(SparseLLM(ALPS()).solve(asked).weight, ALPS().solve(asked).weight)


def test_any_solver_and_criterion_can_be_named_inside() -> None:
    assert build(Solver, {"name": "sparsellm", "inside": "wanda"}, "solver").inside == Mask(Wanda())
    assert build(Solver, {"name": "sparsellm", "inside": {"name": "alps", "damping": 0.1}}, "solver").inside == ALPS(damping=0.1)
    assert build(Solver, "sparsellm", "solver").inside == SparseGPT()


@pytest.mark.parametrize(("settings", "said"), [
    ({"rounds": 0}, "rounds = 0"), ({"alpha": 0.0}, "alpha = 0"), ({"gamma": -1.0}, "gamma = -1"), ({"damping": -0.1}, "damping = -0.1"),
    ({"inside": "sparsellm"}, "inside: SparseLLM does not prune single matrices"),
    ({"inside": "subset"}, "inside: Subset does not prune single matrices"),
])
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(Solver, {"name": "sparsellm", **settings}, "solver")
