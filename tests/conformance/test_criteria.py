"""The laws that every criterion obeys, and the formula that each has in its paper."""

import copy
from typing import Any

import pytest
import torch

from prunus.criteria import loss_needs, saliency
from prunus.criteria.flap import FLAP
from prunus.criteria.isc import ISC
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.obs import OBS
from prunus.criteria.random import Random
from prunus.criteria.ria import RIA
from prunus.criteria.taylor import Taylor
from prunus.criteria.wanda import Wanda
from prunus.errors import CalibrationError
from prunus.lookup import find, names
from prunus.stats import ChannelLoss, InputStats

from ..problems import generator, inputs, stats_of

every_criterion = pytest.mark.parametrize("criterion", [pytest.param(find("criteria", name)(), id=name)
                                                        for name in names("criteria")])


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(12, 24, generator=generator(seed))


def ask(criterion: Any, given: torch.Tensor, stats: InputStats) -> torch.Tensor:
    """Its saliencies; those who ask for the loss are told of 12 channels, one of which it does not depend on."""
    vector = torch.randn(12, generator=generator(1)) * (torch.arange(12) != 4)
    loss = ChannelLoss(vector, 3 * vector.abs(), vector.square(), vector.abs()) if loss_needs(criterion) else None
    return saliency(criterion, given, stats, loss)


@every_criterion
def test_saliencies_are_finite_and_never_negative_even_for_dead_inputs_and_zero_rows(criterion: Any) -> None:
    x, sparse = inputs(0), weight()
    x[:, [3, 9]] = 0
    sparse[2], sparse[:, 7] = 0, 0
    saliency = ask(criterion, sparse, stats_of(x))
    assert saliency.shape == (12, 24)
    assert torch.isfinite(saliency).all()
    assert (saliency >= 0).all()


@every_criterion
def test_neither_the_weight_nor_the_statistics_change(criterion: Any) -> None:
    given, stats = weight(), stats_of(inputs(1))
    gram, copied = stats.gram.clone(), copy.deepcopy(given)
    ask(criterion, given, stats)
    assert torch.equal(given, copied)
    assert torch.equal(stats.gram, gram)


@every_criterion
def test_the_same_question_has_the_same_answer_bit_for_bit(criterion: Any) -> None:
    answers = [ask(criterion, weight(), stats_of(inputs(2))) for _ in range(2)]
    assert torch.equal(*answers)


@every_criterion
def test_the_declared_needs_are_enough(criterion: Any) -> None:
    least = ask(criterion, weight(), stats_of(inputs(3), criterion.needs))
    assert torch.allclose(least, ask(criterion, weight(), stats_of(inputs(3))), rtol=1e-5)


@every_criterion
def test_a_zero_weight_is_worth_least(criterion: Any) -> None:
    if isinstance(criterion, Random | Taylor):
        pytest.skip("random saliencies know no weights, and those from the loss know whole channels")
    given = weight()
    given[4, 5] = 0
    assert ask(criterion, given, stats_of(inputs(4)))[4, 5] == 0


@every_criterion
def test_the_sign_and_the_size_of_all_weights_do_not_change_the_order(criterion: Any) -> None:
    stats = stats_of(inputs(5))
    order = ask(criterion, weight(), stats).flatten().argsort()
    assert torch.equal(ask(criterion, -4 * weight(), stats).flatten().argsort(), order)


@every_criterion
def test_scope_is_row_or_matrix(criterion: Any) -> None:
    assert criterion.scope in ("row", "matrix")


def test_magnitude_is_the_absolute_value() -> None:
    assert torch.equal(Magnitude().saliency(weight(), stats_of(inputs(6))), weight().abs())


def test_wanda_is_the_absolute_value_times_the_norm_of_the_input() -> None:
    x = inputs(7, tokens=100)
    exact = weight().abs() * x.norm(dim=0) / 10  # rms = norm / sqrt(tokens)
    assert torch.allclose(Wanda().saliency(weight(), stats_of(x)), exact, rtol=1e-5)


def test_flap_is_the_squared_weight_times_the_variance_of_the_input() -> None:
    x = inputs(7, tokens=100) + 3
    exact = weight().square() * x.var(0, correction=0)
    assert torch.allclose(FLAP().saliency(weight(), stats_of(x)), exact, rtol=1e-3)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_ria_is_the_share_of_row_and_column_times_a_power_of_the_input(power: float) -> None:
    x, given = inputs(8), weight()
    size, rms = given.abs(), x.square().mean(0).sqrt()
    exact = torch.tensor([[size[i, j] / size[i].sum() + size[i, j] / size[:, j].sum() for j in range(24)] for i in range(12)])
    assert torch.allclose(RIA(power).saliency(given, stats_of(x)), exact * rms**power, rtol=1e-4)


def damped_gram(x: torch.Tensor, damping: float) -> torch.Tensor:
    gram = x.double().T @ x.double() / len(x)
    return gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def test_obs_is_the_error_left_after_removing_one_weight_and_refitting_the_others() -> None:
    """By definition, not by formula: the least squares problem without input j is solved for every j."""
    x, given = inputs(9), weight().double()
    gram = damped_gram(x, 0.1)
    saliency = OBS(damping=0.1).saliency(given.float(), stats_of(x))
    for j in range(24):
        rest = [column for column in range(24) if column != j]
        change = torch.linalg.solve(gram[rest][:, rest], gram[rest, j])[:, None] * given[:, j]
        error = torch.zeros(24, 12, dtype=torch.float64)
        error[rest], error[j] = change, -given[:, j]
        assert torch.allclose(saliency[:, j].double(), (error * (gram @ error)).sum(0), rtol=1e-3)


def test_isc_is_the_sum_of_obd_and_obs() -> None:
    x, given = inputs(10), weight()
    gram = damped_gram(x, 0.01)
    obd = given.double().square() * x.double().square().mean(0)
    obs = given.double().square() / torch.linalg.inv(gram).diagonal()
    assert torch.allclose(ISC().saliency(given, stats_of(x)).double(), obd + obs, rtol=1e-3)


def test_random_depends_on_its_seed_alone() -> None:
    stats = stats_of(inputs(11))
    assert torch.equal(Random(3).saliency(weight(0), stats), Random(3).saliency(weight(1), stats))
    assert not torch.equal(Random(3).saliency(weight(), stats), Random(4).saliency(weight(), stats))


@pytest.mark.parametrize("criterion", [OBS(), ISC()], ids=["obs", "isc"])
def test_a_missing_gram_is_refused_by_site(criterion: Any) -> None:
    with pytest.raises(CalibrationError, match=r"^layers\.2\.v: no Gram"):
        criterion.saliency(weight(), stats_of(inputs(12), "power", "layers.2.v"))
