"""Exchanges of kept for pruned weights: prices against losses that are computed anew, and supports against all there are."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from prunus.errors import CalibrationError
from prunus.exchanges import Windows, exchange
from prunus.granularity import NM, Granularity, Unstructured, keep_mask

from ..problems import generator, inputs, stats_of

WIDTH = 16


def drawn(seed: int, rows: int = 6, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """A weight and a Gram of unit diagonal, in float64."""
    gram = stats_of(inputs(seed, width)).damped(0.01).double()
    scale = gram.diagonal().sqrt()
    return torch.randn(rows, width, generator=generator(seed), dtype=torch.float64), gram / scale / scale[:, None]


def fitted(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """Row by row, from the normal equations."""
    best = torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        best[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
    return best


def losses(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """What every row loses at least, with this support."""
    difference = weight - fitted(weight, mask, gram)
    return ((difference @ gram) * difference).sum(1)


def windows(seed: int, size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor, Windows]:
    """Rows that keep different numbers of weights, and a window of half the places of each."""
    weight, gram = drawn(seed)
    mask = torch.rand(6, WIDTH, generator=generator(seed)) < 0.5
    places = torch.stack([torch.randperm(WIDTH, generator=generator(seed + row))[:size] for row in range(6)])
    return weight, gram, mask, places, Windows.of(gram, weight @ gram, mask, places)


def turned(mask: Tensor, row: int, places: list[int]) -> Tensor:
    other = mask.clone()
    other[row, places] = ~other[row, places]
    return other


def test_a_place_costs_what_the_loss_changes_by_when_all_others_are_refitted() -> None:
    weight, gram, mask, places, state = windows(1)
    before, costs = losses(weight, mask, gram), state.costs()
    for row, index in itertools.product(range(6), range(8)):
        place = int(places[row, index])
        change = losses(weight, turned(mask, row, [place]), gram)[row] - before[row]
        assert float(costs[row, index]) == pytest.approx(abs(float(change)), rel=1e-6)


def test_the_best_exchange_is_the_best_of_all_and_costs_what_the_loss_changes_by() -> None:
    weight, gram, mask, places, state = windows(2)
    before = losses(weight, mask, gram)
    every_change, goes, returns = state.exchanges()
    changes, index = every_change.min(1, keepdim=True)
    go, back = goes.gather(1, index), returns.gather(1, index)
    for row in range(6):
        window = places[row].tolist()
        every = {(p, k): float(losses(weight, turned(mask, row, [p, k]), gram)[row] - before[row])
                 for p, k in itertools.product(window, window) if mask[row, p] and not mask[row, k]}
        found = (window[int(go[row])], window[int(back[row])])
        assert float(changes[row]) == pytest.approx(min(every.values()), rel=1e-6)
        assert every[found] == pytest.approx(min(every.values()), rel=1e-6)


def test_the_best_pattern_of_a_group_is_the_best_of_all() -> None:
    weight, gram = drawn(3)
    mask = keep_mask(torch.rand(6, WIDTH, generator=generator(3)), 0.5, NM(2, 4))
    state = Windows.of(gram, weight @ gram, mask, torch.arange(WIDTH).expand(6, -1))
    patterns = torch.tensor([[place in kept for place in range(4)] for kept in itertools.combinations(range(4), 2)])
    changes, group, pattern = state.best_patterns(patterns, torch.tensor([[0, 2, 3]] * 6))
    before = losses(weight, mask, gram)
    for row in range(6):
        tried = {}
        for index, kept in itertools.product((0, 2, 3), range(6)):
            other = mask.clone()
            other[row, 4 * index : 4 * index + 4] = patterns[kept]
            tried[index, tuple(patterns[kept].tolist())] = float(losses(weight, other, gram)[row] - before[row])
        assert float(changes[row]) == pytest.approx(min(tried.values()), rel=1e-6, abs=1e-12)
        assert tried[int(group[row]), tuple(pattern[row].tolist())] == pytest.approx(float(changes[row]), rel=1e-6, abs=1e-12)


def test_moves_leave_the_state_that_a_new_start_has() -> None:
    weight, gram, mask, places, state = windows(4)
    for index in (3, 0, 6, 3):
        state.move(torch.tensor([0, 2, 5]), torch.tensor([index, (index + 1) % 8, index]))
    moved = mask.scatter(1, places, state.stays)
    assert (moved != mask).any()
    fresh = Windows.of(gram, weight @ gram, moved, places)
    torch.testing.assert_close(state.pivoted, fresh.pivoted)
    torch.testing.assert_close(state.values, fresh.values)


SHAPES = [Unstructured("row"), Unstructured("matrix"), NM(2, 4), NM(1, 4), NM(4, 8)]


@pytest.mark.parametrize("window", [4, 8, 64])
@pytest.mark.parametrize("granularity", SHAPES, ids=str)
def test_rows_change_their_shares_by_trade_alone_and_the_loss_never_rises(granularity: Granularity, window: int) -> None:
    for seed in range(8):
        weight, gram = drawn(seed, rows=9)
        mask = keep_mask(torch.rand(9, WIDTH, generator=generator(seed)), 0.5, granularity)
        better = exchange(weight, fitted(weight, mask, gram), mask, gram, granularity, window)
        assert int(better.sum()) == int(mask.sum())
        assert float(losses(weight, better, gram).sum()) < float(losses(weight, mask, gram).sum())
        if granularity != Unstructured("matrix"):
            assert torch.equal(better.sum(1), mask.sum(1))
            assert (losses(weight, better, gram) <= losses(weight, mask, gram) * (1 + 1e-9)).all()
        if isinstance(granularity, NM):
            assert better.view(9, -1, granularity.m).sum(2).unique().tolist() == [granularity.n]


@pytest.mark.parametrize("granularity", [Unstructured("row"), Unstructured("matrix")], ids=str)
def test_at_the_end_no_exchange_of_two_weights_helps(granularity: Granularity) -> None:
    weight, gram = drawn(5)
    mask = keep_mask(weight.square(), 0.6, granularity)
    better = exchange(weight, fitted(weight, mask, gram), mask, gram, granularity, WIDTH)
    before = losses(weight, better, gram)
    for row in range(6):
        for p, k in itertools.product(range(WIDTH), range(WIDTH)):
            if better[row, p] and not better[row, k]:
                assert losses(weight, turned(better, row, [p, k]), gram)[row] >= before[row] - 1e-5 * float(before.mean())


def test_with_matrix_scope_a_row_gives_to_another_what_it_does_not_need() -> None:
    weight, gram = drawn(6)
    weight[0] *= 100
    mask = keep_mask(weight.square(), 0.5, Unstructured("row"))
    better = exchange(weight, fitted(weight, mask, gram), mask, gram, Unstructured("matrix"), WIDTH)
    assert int(better[0].sum()) > 8
    assert float(losses(weight, better, gram).sum()) < 0.5 * float(losses(weight, mask, gram).sum())


def test_rows_that_keep_all_or_nothing_are_no_obstacle() -> None:
    weight, gram = drawn(7)
    mask = torch.rand(6, WIDTH, generator=generator(7)) < 0.5
    mask[0], mask[1] = True, False
    for granularity in (Unstructured("row"), Unstructured("matrix")):
        better = exchange(weight, fitted(weight, mask, gram), mask, gram, granularity, 6)
        assert int(better.sum()) == int(mask.sum())
        assert float(losses(weight, better, gram).sum()) <= float(losses(weight, mask, gram).sum())


def test_a_gram_that_is_not_positive_definite_is_refused_by_name() -> None:
    weight, gram = drawn(8)
    gram[2:4, 2:4] = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(CalibrationError, match=r"^blocks\.1\.up: Gram matrix not positive definite"):
        exchange(weight, weight, torch.ones_like(weight, dtype=torch.bool), gram, Unstructured("row"), 4, "blocks.1.up")


@pytest.mark.parametrize("inputs", [1, 8])
def test_with_a_single_place_there_is_nothing_to_exchange(inputs: int) -> None:
    weight, gram = drawn(9)
    weight, gram = weight[:, :inputs], gram[:inputs, :inputs]
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[0] = False
    assert torch.equal(exchange(weight, weight * mask, mask, gram, Unstructured("matrix"), 1 if inputs > 1 else WIDTH), mask)


def test_a_problem_that_is_solved_is_left_alone() -> None:
    weight, gram = drawn(9)
    mask = keep_mask(weight.square(), 0.5, Unstructured("row"))
    assert torch.equal(exchange(weight * mask, weight * mask, mask, gram, Unstructured("row"), WIDTH), mask)
    assert math.isclose(float(losses(weight * mask, mask, gram).sum()), 0.0, abs_tol=1e-12)
