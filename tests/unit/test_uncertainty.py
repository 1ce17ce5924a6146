"""Intervals cover what they say they cover."""

import math

import pytest
import torch

from prunus.uncertainty import (
    difference_interval,
    mean_bounds,
    mean_interval,
    paired_ratio_interval,
    perplexity_interval,
    share_interval,
    statistic_interval,
)

from ..problems import generator

SETS = 1500  # simulated; of 95 % intervals 1425 are to cover, with a standard deviation of 8.4 (0.56 %)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(5), dtype=torch.float64)


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


def covered(low: torch.Tensor, truth: float, high: torch.Tensor) -> float:
    return float(((low <= truth) & (truth <= high)).double().mean())


@pytest.mark.parametrize("count", [20, 80])
def test_intervals_of_means_cover_the_truth_as_often_as_they_promise(count: int) -> None:
    """Losses of windows: normal; without the correction for few examples, 20 would be covered by 93 % and not by 95 %."""
    assert 0.93 <= covered(*around(1.0, normal(SETS, count) + 1.0)) <= 0.97


def around(truth: float, values: torch.Tensor) -> tuple[torch.Tensor, float, torch.Tensor]:
    low, high = mean_bounds(values)
    return low, truth, high


def test_intervals_of_differences_cover_the_truth_as_often_as_they_promise() -> None:
    """Pairs with much in common, whose difference is 0.1 and skewed: exponential."""
    differences = torch.empty(SETS, 60, dtype=torch.float64).exponential_(generator=generator(3)) * 0.1
    assert 0.93 <= covered(*around(0.1, differences)) <= 0.97


def test_intervals_of_accuracy_cover_the_truth_as_often_as_they_promise() -> None:
    """Wilson's, of 200 examples, also where nearly all are right, on average over what the truth may be."""
    for truths in ([0.3, 0.5, 0.7, 0.8], [0.97, 0.98, 0.985, 0.99]):
        hits = 0
        for truth in truths:
            right = torch.bernoulli(torch.full((500, 200), truth), generator=generator(1)).sum(1).int().tolist()
            hits += sum(low <= truth <= high for low, high in (share_interval(count, 200) for count in right))
        assert 0.93 <= hits / 2000 <= 0.97


def test_wilson_s_interval_is_the_textbook_s_and_has_a_width_where_nothing_is_wrong() -> None:
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I: method 3
    for right, count in ((0, 20), (20, 20), (50, 50), (277, 277)):
        low, high = share_interval(right, count)
        assert low <= right / count <= high
    low, high = share_interval(20, 20)
    assert high == 1
    assert low == pytest.approx(20 / (20 + 1.959964**2))


def test_intervals_of_clustered_examples_cover_the_truth_and_those_that_take_them_for_single_ones_do_not() -> None:
    """40 documents of 5 windows, which have half of their variance in common."""
    values = (normal(SETS, 40, 1) + torch.randn((SETS, 40, 5), generator=generator(6), dtype=torch.float64)).flatten(1)
    low, high = mean_bounds(values, clusters=[place // 5 for place in range(200)])
    assert 0.93 <= covered(low, 0.0, high) <= 0.97
    low, high = mean_bounds(values)
    assert covered(low, 0.0, high) < 0.8


def test_clusters_of_other_sizes_count_for_what_is_in_them() -> None:
    """Two clusters: resamples have one, the other or both, so that the interval ends at their means."""
    assert mean_interval([1.0, 2.0, 3.0, 10.0], clusters=["a", "a", "a", "b"]) == (2.0, 10.0)


def test_one_set_and_several_at_once_have_the_same_intervals() -> None:
    values = normal(3, 30)
    low, high = mean_bounds(values)
    for row, ends in zip(values.tolist(), zip(low.tolist(), high.tolist(), strict=True), strict=True):
        assert mean_interval(row) == pytest.approx(ends)
        assert perplexity_interval(row) == pytest.approx(tuple(map(math.exp, ends)))
        numbers = torch.tensor(row, dtype=torch.float64)
        assert statistic_interval(lambda drawn, numbers=numbers: float(numbers[drawn].mean()), 30) == pytest.approx(ends)
    one, other = values[:2].tolist()
    assert difference_interval(one, other) == pytest.approx(mean_interval([b - a for a, b in zip(one, other, strict=True)]))


def test_many_examples_are_resampled_a_part_at_a_time() -> None:
    """9000 examples: 2000 resamples do not fit what is held at once."""
    low, high = mean_interval(normal(9000).tolist())
    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(9000), rel=0.1)


def test_a_lower_level_is_narrower_and_the_same_numbers_give_the_same_interval() -> None:
    losses = [1.0, 2.0, 3.0, 2.5, 1.5]
    low, high = perplexity_interval(losses, 0.5)
    wide_low, wide_high = perplexity_interval(losses)
    assert wide_low < low < high < wide_high
    assert perplexity_interval(losses) == (wide_low, wide_high)


def test_losses_beyond_all_floats_give_infinity_not_an_error() -> None:
    assert perplexity_interval([1e4, 1e4]) == (math.inf, math.inf)
    assert mean_interval([1.0, 2.0, math.inf]) == (1.0, math.inf)
    assert all(math.isnan(end) for end in mean_interval([1.0, math.nan]))
