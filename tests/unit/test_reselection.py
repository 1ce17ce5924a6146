"""Masks that are chosen again while what they keep is trained: counts stay, bad choices are mended, and whatever hurts is taken back."""

import random

import pytest
import torch
from torch import Tensor, nn

from prunus.calibration import teaching
from prunus.calibration.reselection import Masked, Reselection, reselection_of
from prunus.granularity import NM, Unstructured, keep_mask

from ..problems import generator

PATTERNS = [Unstructured("row"), Unstructured("matrix"), NM(2, 4)]
Pattern = Unstructured | NM


def per_group(mask: Tensor, pattern: Pattern) -> list[int]:
    width = pattern.m if isinstance(pattern, NM) else mask.shape[1] if pattern.scope == "row" else mask.numel()
    found: list[int] = mask.reshape(-1, width).sum(1).tolist()
    return found


def drawn(pattern: Pattern, seed: int, rows: int = 8, width: int = 32) -> Tensor:
    return keep_mask(torch.rand(rows, width, generator=generator(seed)), 0.5, pattern)


class Planted:
    """A layer whose dense weights are large where a planted mask keeps them, pruned by another mask that knows nothing of it."""

    def __init__(self, pattern: Pattern) -> None:
        draw = generator(2)
        self.planted, self.begun = drawn(pattern, 0), drawn(pattern, 1)
        self.dense = torch.randn(8, 32, generator=draw) * torch.where(self.planted, 1.0, 0.05)
        self.inputs = torch.randn(64, 16, 32, generator=draw) @ torch.randn(32, 32, generator=draw) / 6
        self.others = torch.randn(512, 32, generator=draw) @ torch.randn(32, 32, generator=draw) / 6
        self.layer = nn.utils.skip_init(nn.Linear, 32, 8, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(self.dense * self.begun)
        self.masked = Masked(self.dense, pattern)

    def loss(self, rows: slice) -> Tensor:
        return (self.layer(self.inputs[rows]) - self.inputs[rows] @ self.dense.T).square().mean()

    def reselection(self, times: int) -> Reselection:
        def run() -> None:
            self.loss(slice(None))

        return reselection_of({self.layer: self.masked}, times, run)

    def train(self, times: int, rate: float = 0.02) -> teaching.Taught:
        groups = [slice(start, start + 4) for start in range(0, 64, 4)]
        return teaching.train_kept([self.layer.weight], groups, self.loss, epochs=3, rates=[rate], rng=random.Random(0),
                                   reselection=self.reselection(times) if times else None)

    @torch.no_grad()
    def error(self) -> float:
        """On inputs that nothing was chosen or trained on."""
        aim = self.others @ self.dense.T
        return float((self.layer(self.others) - aim).square().mean() / aim.square().mean())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_mask_that_was_badly_chosen_is_mended_and_ends_with_a_lower_error_than_one_that_stays(pattern: Pattern) -> None:
    fixed, chosen = Planted(pattern), Planted(pattern)
    fixed.train(0)
    chosen.train(8)
    assert torch.equal(fixed.layer.weight != 0, fixed.begun)
    kept = chosen.layer.weight != 0
    assert per_group(kept, pattern) == per_group(chosen.begun, pattern)
    assert int((kept & chosen.planted).sum()) > int((chosen.begun & chosen.planted).sum())
    assert chosen.error() < 0.8 * fixed.error()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_mask_that_was_well_chosen_is_not_made_worse(pattern: Pattern) -> None:
    found = Planted(pattern)
    with torch.no_grad():
        found.layer.weight.copy_(found.dense * found.planted)
    taught = found.train(8)
    assert taught.after <= taught.before
    assert int(((found.layer.weight != 0) & found.planted).sum()) >= 0.95 * int(found.planted.sum())


def steps_of(found: Planted, times: int = 2) -> teaching._Steps:
    return teaching._Steps([(found.layer.weight, 0.02)], 0.999, 12, found.reselection(times))


@torch.no_grad()
def test_what_raises_the_held_out_loss_is_taken_back_with_its_mask_and_the_moments_of_adam() -> None:
    found = Planted(NM(2, 4))
    steps, losses = steps_of(found), iter([1.0, 1.0, 1.5, 2.0])
    for rows in (slice(0, 4), slice(4, 8)):  # the first choice is before the third step
        steps.take(found.loss, rows, lambda: 0.0)
    before, moments = found.layer.weight.clone(), steps._optimizer.state[found.layer.weight]["exp_avg"].clone()
    steps._choose(lambda: next(losses))
    assert torch.equal(found.layer.weight, before)
    assert torch.equal(steps._optimizer.state[found.layer.weight]["exp_avg"], moments)
    assert torch.equal(steps._kept[0], found.begun)


@torch.no_grad()
def test_weights_come_back_with_no_moment_of_adam_and_with_what_their_gradient_made_of_the_dense_value() -> None:
    found = Planted(Unstructured("matrix"))
    steps, losses = steps_of(found), iter([1.0, 0.5])
    steps.take(found.loss, slice(0, 4), lambda: 0.0)
    (candidate,) = [candidate for candidate, _ in steps._candidates]
    away = ~found.begun
    assert 0.019 < float((candidate.values - found.dense).abs()[away].median()) < 0.021  # Adam's first step
    steps._choose(lambda: next(losses))
    state, kept = steps._optimizer.state[found.layer.weight], steps._kept[0]
    back = kept & away
    assert int(back.sum()) == int(0.05 * int(found.begun.sum()))
    assert torch.equal(found.layer.weight[back], candidate.values[back])
    for name in ("exp_avg", "exp_avg_sq"):
        assert not bool(state[name][back].any())
        assert bool(state[name][kept & found.begun].all())


@torch.no_grad()
def test_what_was_zero_in_the_dense_model_stays_zero() -> None:
    found = Planted(Unstructured("matrix"))
    gone = ~found.begun & (torch.arange(256).view(8, 32) % 3 > 0)
    found.dense[gone] = 0
    found.train(8)
    kept = found.layer.weight != 0
    assert not bool(kept[gone].any())
    assert bool(kept[~found.begun].any())


@pytest.mark.parametrize(("times", "steps", "moments"), [(2, 24, {4, 14}), (4, 16, {2, 4, 8, 10}), (1, 21, {8}), (50, 4, {0, 1, 2, 3})])
def test_moments_are_spread_over_three_quarters_of_the_steps(times: int, steps: int, moments: set[int]) -> None:
    assert Reselection([], times).moments(steps) == moments
