"""Tests reject as often as they say, and give the p-values of textbooks and of scipy."""

import math
import random

import pytest
import torch

from prunus.significance import holm, mcnemar, of_seeds, remark_on, sign_flips

from ..problems import generator


def test_mcnemar_is_the_exact_binomial_test_of_the_examples_that_differ() -> None:
    """1 of 9 by hand: 2 (C(9, 0) + C(9, 1)) / 2^9; examples that both are right or wrong about say nothing."""
    one, other = [0.0] + [1.0] * 8 + [1.0, 0.0] * 5, [1.0] + [0.0] * 8 + [1.0, 0.0] * 5
    assert mcnemar(one, other) == mcnemar(other, one) == 20 / 512
    assert mcnemar([1.0, 0.0], [0.0, 1.0]) == 1
    assert mcnemar([1.0, 1.0, 0.0], [1.0, 1.0, 0.0]) == 1
    assert mcnemar([1.0] * 900, [0.0] * 900) == 2.0**-899


@pytest.mark.parametrize("count", [10, 100, 3000])
def test_mcnemar_agrees_with_scipy(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    drawn = random.Random(count)
    one, other = ([float(drawn.random() < share) for _ in range(count)] for share in (0.6, 0.55))
    only = [sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((one, other), (other, one))]
    assert mcnemar(one, other) == pytest.approx(stats.binomtest(min(only), sum(only)).pvalue)


def test_signs_of_three_pairs_by_hand() -> None:
    """Of the 8 sums of ±1 ±2 ±4, those of 5 or more either way are 7, 5, -5, -7."""
    assert sign_flips([0.0] * 3, [-1.0, 2.0, 4.0]) == 0.5
    assert sign_flips([0.0] * 3, [1.0, 2.0, 4.0]) == 0.25
    assert sign_flips([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == 1
    assert sign_flips([0.0] * 4, [1.0, 2.0, 2.0, 2.0], clusters="abbb") == 0.5  # of ±1 ±6, 7 and -7


@pytest.mark.parametrize("count", [12, 13, 14, 60])
def test_random_signs_agree_with_scipy(count: int) -> None:
    """Exact up to 13 pairs; of 10,000 draws the p-value has a standard deviation of at most 0.005."""
    stats = pytest.importorskip("scipy.stats")
    values = torch.randn(count, generator=generator(count), dtype=torch.float64) + 0.35
    theirs = stats.permutation_test((values.numpy(),), lambda drawn, axis: drawn.mean(axis), permutation_type="samples", vectorized=True,
                                    n_resamples=math.inf if count <= 14 else 20_000, rng=0)
    assert sign_flips([0.0] * count, values.tolist()) == pytest.approx(theirs.pvalue, abs=1e-12 if count <= 13 else 0.02)


def test_tests_of_equal_models_reject_as_often_as_they_say() -> None:
    """Random signs: 5 % of 400, ± 3 standard deviations of 1.1 %. McNemar's, of which an exact test can say less, no more than that."""
    values = torch.randn((400, 40), generator=generator(2), dtype=torch.float64)
    rejected = sum(sign_flips([0.0] * 40, row) < 0.05 for row in values.tolist()) / 400
    assert 0.018 <= rejected <= 0.083
    answers = torch.bernoulli(torch.full((2, 2000, 100), 0.6), generator=generator(2)).tolist()
    rejected = sum(mcnemar(one, other) < 0.05 for one, other in zip(*answers, strict=True)) / 2000
    assert 0.015 <= rejected <= 0.05 + 3 * 0.005


def test_tests_of_different_models_reject() -> None:
    """A loss that is half a deviation lower, on 60 windows; an accuracy of 0.6 against 0.75 on 300 examples."""
    values = torch.randn((100, 60), generator=generator(4), dtype=torch.float64) + 0.5
    assert sum(sign_flips([0.0] * 60, row) < 0.05 for row in values.tolist()) >= 90
    answers = [torch.bernoulli(torch.full((100, 300), share), generator=generator(4)).tolist() for share in (0.6, 0.8)]
    assert sum(mcnemar(one, other) < 0.05 for one, other in zip(*answers, strict=True)) >= 95


def test_holm_s_correction_is_holm_s() -> None:
    """Of four: 0.01 x 4, 0.02 x 3, 0.03 x 2, which may not be less than the one before it, and 0.5."""
    assert holm({"a": 0.03, "b": 0.01, "c": 0.5, "d": 0.02}) == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.5, "d": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_seeds_are_compared_seed_by_seed() -> None:
    found = of_seeds([10.0, 12.0, 14.0], [9.0, 11.5, 12.5])
    assert (found.count, found.means, found.difference) == (3, (12.0, 11.0), -1.0)
    assert found.deviations == pytest.approx((2.0, math.sqrt(39 / 12)), rel=0.05)
    assert found.deviation == pytest.approx(0.5)
    assert found.p == pytest.approx(0.0742, abs=1e-4)  # t = 3.4641 with 2 degrees of freedom
    assert remark_on(found.count).startswith("3 seeds")
    assert "p = 0.25" in remark_on(3)
    assert remark_on(6) == ""


@pytest.mark.parametrize("count", range(2, 10))
def test_the_test_of_seeds_agrees_with_scipy(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    one, other = torch.randn((2, count), generator=generator(count), dtype=torch.float64).tolist()
    assert of_seeds(one, other).p == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-9)


def test_one_seed_says_nothing_of_seeds() -> None:
    found = of_seeds([3.0], [2.0])
    assert math.isnan(found.p)
    assert "One seed" in remark_on(found.count)
    assert of_seeds([1.0, 2.0], [1.0, 2.0]).p == 1
