"""The error of an answer, by its definition, and problems that no solver can use."""

import pytest
import torch

from prunus.errors import CalibrationError
from prunus.problem import LayerProblem

from ..problems import generator, inputs, problem, stats_of


def test_the_error_is_the_lost_share_of_the_output() -> None:
    x, asked = inputs(0), problem(0)
    candidate = torch.randn(12, 24, generator=generator(1))
    lost = (x.double() @ (asked.weight - candidate).double().T).square().sum()
    assert asked.error(candidate) == pytest.approx(float(lost / (x.double() @ asked.weight.double().T).square().sum()), rel=1e-4)


def test_the_weight_itself_has_no_error_and_nothing_has_all_of_it() -> None:
    asked = problem(1)
    assert asked.error(asked.weight.clone()) == 0
    assert asked.error(torch.zeros(12, 24)) == pytest.approx(1.0, rel=1e-6)


def test_rounding_never_makes_the_error_negative() -> None:
    for seed in range(20):
        asked = problem(seed, tokens=2)
        assert asked.error(asked.weight * (1 + 1e-6)) >= 0


def test_an_output_that_is_always_zero_has_no_error() -> None:
    assert problem(2, x=torch.zeros(5, 24)).error(torch.ones(12, 24)) == 0
    assert problem(2, weight=torch.zeros(12, 24)).error(torch.zeros(12, 24)) == 0


def test_without_a_gram_the_error_is_unknown() -> None:
    asked = problem(3)
    for needs in ("nothing", "power"):
        assert LayerProblem(asked.weight, stats_of(inputs(3), needs), asked.granularity, 0.5).error(asked.weight) is None


def test_weights_that_are_not_finite_are_refused_before_statistics_that_are_not_there() -> None:
    asked = problem(4)
    asked.weight[0, :3] = float("nan")
    with pytest.raises(CalibrationError, match=r"^blocks\.3\.down: 3 of its 288 weights are not finite"):
        asked.check()
