"""The laws that every quantiser obeys on every grid."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.errors import CalibrationError
from prunus.lookup import find, names
from prunus.quantisation import Grid, Rounded
from prunus.stats import InputStats

from ..problems import generator, inputs, stats_of

GRIDS = [Grid(4, 8), Grid(8, 8), Grid(4, 0), Grid(8, 24)]
every_quantiser = pytest.mark.parametrize("quantiser", [pytest.param(find("quantisers", name)(), id=name) for name in names("quantisers")])
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def matrix(seed: int, rows: int = 12, width: int = 24) -> tuple[Tensor, Tensor, InputStats]:
    """A weight of which about half is pruned, its mask, and what its inputs looked like."""
    mask = torch.rand(rows, width, generator=generator(seed + 500)) < 0.5
    return torch.randn(rows, width, generator=generator(seed)) * mask, mask, stats_of(inputs(seed, width), name="blocks.3.down")


def error(weight: Tensor, rounded: Rounded, stats: InputStats) -> float:
    """E ||(W - W') x||^2 by the Gram itself."""
    gap = (weight - rounded.weight).double()
    return float((gap @ stats.gram.double() @ gap.T).trace())


@every_quantiser
@every_grid
def test_codes_fit_the_bits_and_every_group_has_one_scale(quantiser: Any, grid: Grid) -> None:
    weight, mask, stats = matrix(1)
    found = quantiser.quantise(weight, mask, grid, stats)
    assert found.codes.dtype == torch.int8
    assert found.codes.abs().max() == 2 ** (grid.bits - 1) - 1
    assert found.scale.shape == (12, 24 // (grid.group or 24))
    assert (found.scale > 0).all()
    for group, scale in zip(found.weight.split(grid.group or 24, 1), found.scale.T, strict=True):
        steps = group / scale[:, None]
        assert (steps - steps.round()).abs().max() < 1e-4
        assert len(group[0].unique()) <= 2**grid.bits


@every_quantiser
@every_grid
def test_what_is_pruned_stays_exactly_zero(quantiser: Any, grid: Grid) -> None:
    for seed in range(5):
        weight, mask, stats = matrix(seed)
        assert (quantiser.quantise(weight, mask, grid, stats).weight[~mask] == 0).all()


@every_quantiser
def test_it_leaves_what_it_is_given_untouched_and_gives_the_same_answer_again(quantiser: Any) -> None:
    weight, mask, stats = matrix(2)
    before = [copy.deepcopy(part) for part in (weight, mask, stats.gram)]
    first, second = (quantiser.quantise(weight, mask, GRIDS[0], stats) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scale, second.scale)
    for now, then in zip((weight, mask, stats.gram), before, strict=True):
        assert torch.equal(now, then)


@every_quantiser
def test_matrices_with_the_same_inputs_may_be_given_as_one(quantiser: Any) -> None:
    weight, mask, stats = matrix(3)
    whole = quantiser.quantise(weight, mask, GRIDS[0], stats)
    for start, stop in pairwise((0, 5, 12)):
        part = quantiser.quantise(weight[start:stop], mask[start:stop], GRIDS[0], stats)
        assert torch.equal(part.codes, whole.rows(start, stop).codes)
        assert torch.allclose(part.scale, whole.rows(start, stop).scale, rtol=1e-5)


@every_quantiser
def test_scaling_the_weight_scales_the_answer_and_not_the_codes(quantiser: Any) -> None:
    weight, mask, stats = matrix(4)
    one, other = (quantiser.quantise(weight * factor, mask, GRIDS[0], stats) for factor in (1.0, 4.0))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale * 4, other.scale)


@every_quantiser
def test_it_survives_groups_of_zeros_dead_inputs_and_a_single_token(quantiser: Any) -> None:
    weight, _, _ = matrix(5)
    weight[:, :8] = 0
    x = inputs(5)[:1]
    x[:, 3] = 0
    found = quantiser.quantise(weight, weight != 0, GRIDS[0], stats_of(x))
    assert torch.isfinite(found.weight).all()
    assert (found.weight[:, :8] == 0).all()
    assert (found.weight[:, 8:] != 0).any()


@every_quantiser
def test_scales_are_numbers_of_the_dtype_that_is_asked_for(quantiser: Any) -> None:
    weight, mask, stats = matrix(6)
    scale = quantiser.quantise(weight, mask, GRIDS[0], stats, torch.bfloat16).scale
    assert scale.dtype == torch.float32
    assert torch.equal(scale, scale.bfloat16().float())


@every_quantiser
def test_statistics_that_are_no_numbers_are_refused_by_the_name_of_the_site(quantiser: Any) -> None:
    weight, mask, _ = matrix(7)
    if quantiser.needs == "nothing":
        return
    x = inputs(7)
    x[0, 5] = float("inf")
    stats = stats_of(x, name="blocks.3.down")
    with pytest.raises(CalibrationError, match=r"blocks\.3\.down: 1 of 24 inputs are not finite"):
        quantiser.quantise(weight, mask, GRIDS[0], stats)


@pytest.mark.parametrize("grid", [Grid(4, 8), Grid(4, 0), Grid(8, 8)], ids=str)
def test_calibrated_codes_lose_less_of_the_output_than_the_nearest_ones(grid: Grid) -> None:
    """A tendency, over 50 matrices of which half is pruned: on all but a few, and a good part less in the mean."""
    ratios = []
    for seed in range(50):
        weight, mask, stats = matrix(seed, width=48)
        near, calibrated = (find("quantisers", name)().quantise(weight, mask, grid, stats) for name in ("rtn", "gptq"))
        ratios.append(error(weight, calibrated, stats) / error(weight, near, stats))
    assert sum(ratio > 1 for ratio in ratios) <= 5
    assert sum(ratios) / len(ratios) < 0.85
