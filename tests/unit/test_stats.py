"""Streaming moments equal the direct ones, whatever the order, and refuse what cannot be used."""

import pytest
import torch

from prunus.errors import CalibrationError
from prunus.stats import InputStats, most

from ..problems import generator, inputs, stats_of

EPSILON = torch.finfo(torch.float32).eps


def assert_close(found: torch.Tensor, exact: torch.Tensor, terms: int) -> None:
    """Sums of `terms` float32 products: at most about `terms` roundings each, relative to the largest entry."""
    assert float((found.double() - exact).abs().max()) <= terms * EPSILON * float(exact.abs().max())


@pytest.mark.parametrize("width", [3, 512, 513, 1100])
def test_moments_equal_the_direct_computation_also_over_several_panels(width: int) -> None:
    x = inputs(0, width, 64)
    stats = InputStats(width)
    for part in x.view(2, 4, 8, width):  # three-dimensional batches: all leading sizes are tokens
        stats.update(part)
    exact = x.double()
    assert stats.tokens == 64
    assert_close(stats.mean, exact.mean(0), 64)
    assert_close(stats.power, exact.square().mean(0), 64)
    assert_close(stats.gram, exact.T @ exact / 64, 64)
    assert torch.equal(stats.gram, stats.gram.T)
    assert torch.equal(stats.rms(), stats.power.sqrt())


def test_power_without_a_gram_is_the_gram_s_diagonal() -> None:
    x = inputs(1, 600, 40)
    assert_close(stats_of(x, "power").power, stats_of(x).gram.diagonal().double(), 40)


def test_half_precision_inputs_accumulate_in_float32() -> None:
    x = torch.full((4096, 2), 1.0, dtype=torch.bfloat16)  # a bfloat16 sum would stop at 256
    assert stats_of(x).mean.tolist() == [1.0, 1.0]


def test_merging_in_any_order_equals_seeing_all_tokens() -> None:
    x = inputs(2, 24, 90)
    parts = [stats_of(x[:10]), stats_of(x[10:40]), stats_of(x[40:])]
    whole = stats_of(x)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        merged = InputStats(24)
        for index in order:
            merged.merge(parts[index])
        assert merged.tokens == 90
        assert_close(merged.gram, whole.gram.double(), 90)
        assert_close(merged.mean, whole.mean.double(), 90)
        assert_close(merged.power, whole.power.double(), 90)


def test_an_update_or_a_merge_discards_what_was_cached() -> None:
    x = inputs(3, 24, 90)
    for grow in (lambda stats: stats.update(x[45:]), lambda stats: stats.merge(stats_of(x[45:]))):
        stats = stats_of(x[:45])
        old = stats.inverse_cholesky(0.01)
        assert stats.shared("mine", lambda: "old") == "old"
        grow(stats)
        assert stats.shared("mine", lambda: "new") == "new"
        assert_close(stats.gram, stats_of(x).gram.double(), 90)
        assert not torch.equal(stats.inverse_cholesky(0.01), old)


def test_a_factor_is_computed_once_per_damping() -> None:
    stats = stats_of(inputs(4))
    assert stats.inverse_cholesky(0.01) is stats.inverse_cholesky(0.01)
    assert not torch.equal(stats.inverse_cholesky(0.01), stats.inverse_cholesky(0.1))


def test_what_one_site_made_is_given_to_the_next_and_not_made_again() -> None:
    stats, made = stats_of(inputs(4)), []
    for _ in range(3):
        assert stats.shared(("mine", 0.5), lambda: made.append(1) or "made") == "made"
    assert made == [1]


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    stats = stats_of(inputs(5, tokens=400))
    factor = stats.inverse_cholesky(0.01)
    exact = torch.linalg.inv(stats.damped(0.01).double())
    assert torch.equal(factor, factor.triu())
    assert float((factor.double().T @ factor.double() - exact).abs().max()) <= 4 * EPSILON * float(exact.abs().max()) * 24


def test_damping_adds_its_share_of_the_mean_and_leaves_the_gram_alone() -> None:
    stats = stats_of(inputs(6))
    gram = stats.gram.clone()
    added = stats.damped(0.25) - gram
    assert torch.equal(stats.gram, gram)
    assert torch.allclose(added, 0.25 * gram.diagonal().mean() * torch.eye(24), atol=4 * EPSILON * float(gram.max()))


def test_damping_by_the_median_does_not_follow_one_massive_input() -> None:
    x = inputs(6)
    x[:, 4] *= 1e3
    stats = stats_of(x)
    added = (stats.damped(0.5, "median") - stats.gram).diagonal()
    usual = stats.gram.diagonal().median()
    assert float(added[0]) == pytest.approx(0.5 * float(usual), rel=1e-4)


def test_dead_inputs_get_the_mean_so_that_the_factor_exists_without_damping() -> None:
    x = inputs(7, tokens=400)
    x[:, [2, 17]] = 0
    stats = stats_of(x)
    damped = stats.damped(0.0)
    assert float(damped[2, 2]) == float(damped[17, 17]) == pytest.approx(float(stats.gram.diagonal().mean()), rel=1e-6)
    assert torch.isfinite(stats.inverse_cholesky(0.0)).all()


def test_inputs_that_are_all_dead_have_the_identity_as_their_damped_gram() -> None:
    assert torch.equal(stats_of(torch.zeros(5, 3)).damped(0.01), torch.eye(3))


def test_a_singular_gram_without_damping_is_refused_by_name() -> None:
    direction = torch.randn(1, 6, generator=generator(8))
    stats = stats_of(torch.cat([direction, direction]) * torch.tensor([[1.0], [2.0]]), name="layers.1.up")
    with pytest.raises(CalibrationError, match=r"^layers\.1\.up: Gram matrix not positive definite after damping"):
        stats.inverse_cholesky(-1e-6)


def test_asking_for_a_gram_that_was_not_collected_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match=r"^here: no Gram matrix was collected"):
        _ = stats_of(inputs(9), "power", name="here").gram


@pytest.mark.parametrize("needs", ["power", "gram"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_moments_that_are_not_finite_are_refused_by_name(needs: str, bad: float) -> None:
    x = inputs(10)
    x[3, 5] = bad  # 1e30 overflows when squared
    with pytest.raises(CalibrationError, match=r"^layers\.0\.q: 1 of 24 inputs are not finite"):
        stats_of(x, needs, name="layers.0.q").check()


def test_a_site_that_no_token_reached_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match=r"^layers\.0\.expert: no calibration token reached it"):
        InputStats(4, name="layers.0.expert").check()


def test_the_greatest_need_wins() -> None:
    assert most("nothing", "gram", "power") == "gram"
    assert most("nothing", "power") == "power"
    assert most() == "nothing"
