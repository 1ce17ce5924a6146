"""Bootstrap intervals cover what they say they cover."""

import math

import pytest
import torch

from prunus.uncertainty import paired_ratio_interval, perplexity_interval

from ..problems import generator


def test_equal_windows_leave_no_doubt() -> None:
    assert perplexity_interval([2.0] * 9) == pytest.approx((math.exp(2), math.exp(2)))
    assert perplexity_interval([2.0]) == pytest.approx((math.exp(2), math.exp(2)))


def test_a_pair_that_moves_together_leaves_no_doubt_about_the_ratio() -> None:
    before = [1.0, 5.0, 2.5, 3.0]
    low, high = paired_ratio_interval(before, [loss + 0.25 for loss in before])
    assert (low, high) == pytest.approx((math.exp(0.25), math.exp(0.25)))
    low, high = perplexity_interval(before)
    assert high / low > 2


def test_the_width_is_that_of_a_normal_mean() -> None:
    """For 400 draws of N(0, 1) the interval of the mean is +- 1.96 / 20, up to 10 % for 2000 resamples."""
    losses = torch.randn(400, generator=generator(0), dtype=torch.float64)
    low, high = map(math.log, perplexity_interval(losses.tolist()))
    assert (high - low) / 2 == pytest.approx(1.96 * float(losses.std()) / 20, rel=0.1)
    assert low < float(losses.mean()) < high


def test_the_interval_covers_the_truth_as_often_as_it_promises() -> None:
    """200 samples of 40 windows, 95 %: 190 expected; 3.5 standard deviations (10.8) and the small-sample bias (4) allowed."""
    hits = 0
    for seed in range(200):
        low, high = perplexity_interval(torch.randn(40, generator=generator(seed), dtype=torch.float64).tolist())
        hits += low <= 1.0 <= high
    assert 175 <= hits <= 199


def test_a_lower_level_is_narrower_and_the_same_numbers_give_the_same_interval() -> None:
    losses = [1.0, 2.0, 3.0, 2.5, 1.5]
    low, high = perplexity_interval(losses, 0.5)
    wide_low, wide_high = perplexity_interval(losses)
    assert wide_low < low < high < wide_high
    assert perplexity_interval(losses) == (wide_low, wide_high)


def test_losses_beyond_all_floats_give_infinity_not_an_error() -> None:
    assert perplexity_interval([1e4, 1e4]) == (math.inf, math.inf)
