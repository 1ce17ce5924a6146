"""Solvers against the best there is, on problems so small that all supports can be tried. Tendencies over many problems."""

import functools
import itertools
import math
import statistics
from typing import Any

import pytest
import torch

from prunus.criteria.magnitude import Magnitude
from prunus.criteria.wanda import Wanda
from prunus.granularity import NM, Columns, Granularity, Unstructured, keep_mask
from prunus.lookup import find
from prunus.pivots import Pivoted
from prunus.problem import LayerProblem
from prunus.solvers import ladmm
from prunus.solvers.ladmm import LADMM
from prunus.solvers.mask import Mask
from prunus.solvers.subset import Subset
from prunus.solvers.swaps import Swaps

from ..problems import generator, problem

SEEDS = range(60)
ROWS, WIDTH = 4, 8


def best_error(asked: LayerProblem, supports: list[tuple[int, ...]], shared: bool = False) -> float:
    """The least error over all supports, each with its least squares; rows choose for themselves, or all the same."""
    gram, weight = asked.stats.gram.double(), asked.weight.double()
    whole = float(((weight @ gram) * weight).sum())
    costs = []
    for support in supports:
        kept = list(support)
        best = torch.zeros_like(weight)
        best[:, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight.T).T
        costs.append((((weight - best) @ gram) * (weight - best)).sum(1))
    table = torch.stack(costs)
    least = table.sum(1).min() if shared else table.amin(0).sum()
    return float(least) / whole


def supports_of(granularity: Granularity) -> list[tuple[int, ...]]:
    """All supports of one row that keep half."""
    everything = list(itertools.combinations(range(WIDTH), WIDTH // 2))
    if isinstance(granularity, NM):
        return [support for support in everything if sum(index < granularity.m for index in support) == granularity.n]
    return everything


SHAPES: list[Granularity] = [Unstructured("row"), NM(2, 4), Columns(1)]


@functools.cache
def problems(granularity: Granularity) -> list[tuple[LayerProblem, float]]:
    """Every problem with the least error that it can have."""
    drawn = [problem(seed, ROWS, WIDTH, 60, granularity, 0.5) for seed in SEEDS]
    return [(asked, best_error(asked, supports_of(granularity), isinstance(granularity, Columns))) for asked in drawn]


def factors(solver: Any, granularity: Granularity) -> list[float]:
    """The solver's error as a multiple of the least possible one, on every problem."""
    return [float(asked.error(solver.solve(asked).weight)) / best for asked, best in problems(granularity)]


# Mean factor that a solver stays below over 60 problems: measured, with a tenth of room. Masking by magnitude: 6.4, 5.8, 5.2.
LIMITS = [
    ("refit", Unstructured("row"), 2.1), ("refit", NM(2, 4), 1.9), ("refit", Columns(1), 1.5),
    ("sparsegpt", Unstructured("row"), 3.5), ("sparsegpt", NM(2, 4), 2.6), ("sparsegpt", Columns(1), 1.2),
    ("alps", Unstructured("row"), 1.35), ("alps", NM(2, 4), 1.3), ("alps", Columns(1), 1.4),
    ("swaps", Unstructured("row"), 1.02), ("swaps", NM(2, 4), 1.02),
    ("ladmm", Unstructured("row"), 1.65), ("ladmm", NM(2, 4), 1.55), ("ladmm", Columns(1), 1.35),
    ("subset", Columns(1), 1.01),
]


@pytest.mark.parametrize(("name", "granularity", "limit"), LIMITS, ids=lambda value: str(value))
def test_the_error_is_within_a_factor_of_the_best_support_s(name: str, granularity: Granularity, limit: float) -> None:
    found = factors(find("solvers", name)(), granularity)
    assert min(found) >= 1 - 1e-4  # nobody beats all supports
    assert statistics.fmean(found) <= limit


def larger_errors(solver: Any, granularity: Granularity, count: int = 50) -> list[float]:
    """On so many problems of 24 x 48, at 2:4 or 70 percent."""
    sparsity = 0.5 if isinstance(granularity, NM) else 0.7
    drawn = [problem(seed, 24, 48, 150, granularity, sparsity) for seed in range(count)]
    return [float(asked.error(solver.solve(asked).weight)) for asked in drawn]


LARGER: list[Granularity] = [Unstructured("row"), Unstructured("matrix"), NM(2, 4), Columns(1)]


@pytest.mark.parametrize(("granularity", "criterion"), [
    (LARGER[0], Magnitude()), (LARGER[1], Magnitude()), (LARGER[2], Wanda()), (LARGER[3], Wanda()),
], ids=lambda value: str(value))
def test_updating_beats_masking_on_nine_problems_of_ten(granularity: Granularity, criterion: Any) -> None:
    """A tendency. In one block of 48 columns SparseGPT beats Wanda on three of five only, hence magnitude there."""
    masked = larger_errors(Mask(criterion), granularity)
    for name in ("refit", "sparsegpt", "alps"):
        updated = larger_errors(find("solvers", name)(), granularity)
        assert sum(ours < theirs for ours, theirs in zip(updated, masked, strict=True)) >= 45, name


@pytest.mark.parametrize(("granularity", "share"), [(LARGER[0], 0.62), (LARGER[1], 0.62), (LARGER[2], 0.67)], ids=str)
def test_alps_leaves_a_fraction_of_sparsegpt_s_error(granularity: Granularity, share: float) -> None:
    """The shares that the real layers of the benchmark are held to, on drawn ones."""
    ours, theirs = (larger_errors(find("solvers", name)(), granularity) for name in ("alps", "sparsegpt"))
    assert statistics.fmean(one / other for one, other in zip(ours, theirs, strict=True)) <= share


@pytest.mark.parametrize(("granularity", "share"), [(LARGER[0], 0.97), (LARGER[1], 0.97), (LARGER[2], 0.96)], ids=str)
def test_exchanges_never_raise_the_error_and_end_below_alps(granularity: Granularity, share: float) -> None:
    """The first is a law; the second held on 150 of 150 problems, where the means were 0.954, 0.961 and 0.948."""
    ours, start, alps = (larger_errors(solver, granularity, 15) for solver in (Swaps(), Swaps(window=0), find("solvers", "alps")()))
    assert all(after <= before for after, before in zip(ours, start, strict=True))
    assert sum(one < other for one, other in zip(ours, alps, strict=True)) >= 14
    assert statistics.fmean(one / other for one, other in zip(ours, alps, strict=True)) <= share


@pytest.mark.parametrize("granularity", LARGER[:3], ids=str)
def test_a_sparsity_that_grows_leaves_less_error_than_one_that_is_there_at_once(granularity: Granularity) -> None:
    """In every scope and shape the schedule acts: 0.68, 0.66 and 0.73 of the error, measured."""
    grown, once = (larger_errors(LADMM(gradual=steps), granularity) for steps in (15, 1))
    assert statistics.fmean(one / other for one, other in zip(grown, once, strict=True)) <= 0.8


def test_on_the_way_to_n_m_only_what_the_pattern_removes_goes_and_as_much_as_the_schedule_says() -> None:
    saliency = torch.rand(12, 24, generator=generator(1))
    pattern = keep_mask(saliency, 0.5, NM(2, 4))
    for share in (0.1, 0.3, 0.49):
        kept = ladmm._mask(saliency, share, NM(2, 4), last=False)
        assert int((~kept).sum()) == math.ceil(share * 288)
        assert not (pattern & ~kept).any()
        assert float(saliency[~kept].max()) <= float(saliency[kept & ~pattern].min())
    assert torch.equal(ladmm._mask(saliency, 0.5, NM(2, 4), last=True), pattern)


def test_column_subset_selection_is_never_worse_without_exchanges_and_better_than_rounds() -> None:
    """Exchanges only take what lowers the error: a law. Against removal in rounds by the same loss, a tendency."""
    drawn = [problem(seed, 24, 48, 150, Columns(1), 0.5) for seed in range(50)]

    def errors(solver: Any) -> list[float]:
        return [float(asked.error(solver.solve(asked).weight)) for asked in drawn]

    exchanged, greedy, rounds = errors(Subset(damping=1e-6)), errors(Subset(damping=1e-6, swaps=0)), errors(find("solvers", "sparsegpt")())
    assert all(after <= before * (1 + 1e-5) for after, before in zip(exchanged, greedy, strict=True))
    assert sum(after < before * (1 - 1e-5) for after, before in zip(exchanged, greedy, strict=True)) >= 12
    assert statistics.fmean(exchanged) < statistics.fmean(rounds)


@pytest.mark.parametrize("width", [1, 3])
def test_pivots_hold_the_refitted_weights_and_the_exact_losses(width: int) -> None:
    asked = problem(3, 10, 12, 60, Columns(width), 0.5)
    gram, weight = asked.stats.gram.double(), asked.weight.double()

    def error(groups: list[int]) -> float:
        kept = [group * width + place for group in groups for place in range(width)]
        best = torch.zeros_like(weight)
        best[:, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight.T).T
        return float((((weight - best) @ gram) * (weight - best)).sum())

    state = Pivoted(weight, torch.linalg.inv(gram), width)
    for moved in (2, 0, 3, 2, 0):  # two of them come back
        stayed = state.stays.nonzero().flatten().tolist()
        predicted = float(state.losses()[moved])
        state.move(torch.tensor([moved]))
        stays = state.stays.nonzero().flatten().tolist()
        assert abs(error(stays) - error(stayed)) == pytest.approx(predicted, rel=1e-6)
        kept = [group * width + place for group in stays for place in range(width)]
        best = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight.T).T
        assert torch.allclose(state.values[:, kept], best, rtol=1e-6, atol=1e-9)
