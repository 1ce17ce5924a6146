"""Budgets count weights."""

import pytest

from prunus.budget import Budget
from prunus.errors import RecipeError
from prunus.sites import LinearSite

SITES = (LinearSite("small", 0, (2, 5), "x"), LinearSite("large", 0, (9, 10), "x"))


def test_what_remains_is_counted_in_weights_not_in_sites() -> None:
    assert Budget(0.5).remaining(SITES, {"small": 1.0, "large": 0.0}) == pytest.approx(0.9)
    assert Budget(0.5).remaining(SITES, {"small": 0.0, "large": 1.0}) == pytest.approx(0.1)


def test_a_budget_is_met_up_to_its_limit() -> None:
    assert Budget(0.5).met(SITES, {"small": 0.5, "large": 0.5})
    assert not Budget(0.5).met(SITES, {"small": 0.5, "large": 0.4999})


def test_sparsity_is_what_the_limit_leaves_without_rounding_noise() -> None:
    assert Budget(0.3).sparsity == 0.7
    assert Budget(1.0).sparsity == 0


@pytest.mark.parametrize("limit", [0.0, -0.5, 1.5])
def test_limits_outside_zero_to_one_are_refused(limit: float) -> None:
    with pytest.raises(RecipeError, match=r"budget\.limit = .*expected the fraction of weights kept"):
        Budget(limit)


def test_a_limit_in_percent_is_refused_with_the_fraction() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 0\.3\?"):
        Budget(30.0)
