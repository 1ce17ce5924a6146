"""Scores are what the field's own programs compute, and what a hand computes."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import scipy.stats
import torch

from prunus.errors import CorpusError
from prunus.scores import Score, check_metric, default_metric
from prunus.scores import scored as scored_tensors


def scored(metric: Any, said: Sequence[float], right: Sequence[float], classes: int = 2) -> float:
    return scored_tensors(metric, torch.tensor(said, dtype=torch.float64), torch.tensor(right, dtype=torch.float64), classes)


def test_by_hand() -> None:
    """Right 1 1 1 0 0 0, said 1 1 0 0 0 1: 2 true positives, 1 false, 1 missed, 2 true negatives."""
    said, right = [1, 1, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0]
    assert scored("accuracy", said, right) == pytest.approx(4 / 6)
    assert scored("f1", said, right) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scored("matthews", said, right) == pytest.approx((2 * 2 - 1 * 1) / 9)


def test_f1_of_two_classes_is_that_of_the_second_and_of_more_the_mean() -> None:
    """Said 0 0 1 1 2, right 0 1 1 1 0: F1 are 2/4, 4/5 and 0."""
    assert scored("f1", [0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(2 * 2 / (2 + 3))
    assert scored("f1", [0, 0, 1, 1, 2], [0, 1, 1, 1, 0], classes=3) == pytest.approx((0.5 + 0.8 + 0) / 3)
    assert scored("f1", [0, 1, 1], [0, 1, 1], classes=3) == 1.0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_matthews_is_the_correlation_of_indicators(classes: int) -> None:
    """Gorodkin's R_K is the correlation of the two tables of indicators, their covariances summed over classes."""
    rng = random.Random(classes)
    said, right = ([rng.randrange(classes) for _ in range(200)] for _ in range(2))
    one, other = (torch.nn.functional.one_hot(torch.tensor(values), classes).double() for values in (said, right))
    one, other = one - one.mean(0), other - other.mean(0)
    expected = float((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt())
    assert scored("matthews", said, right, classes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_correlations_are_scipy_s_with_ties_and_without(digits: int) -> None:
    rng = random.Random(digits)
    right = [round(rng.uniform(0, 5), digits) for _ in range(300)]
    said = [round(value + rng.gauss(0, 2), digits) for value in right]
    assert scored("spearman", said, right, 1) == pytest.approx(float(scipy.stats.spearmanr(said, right).statistic), abs=1e-12)
    assert scored("pearson", said, right, 1) == pytest.approx(float(scipy.stats.pearsonr(said, right).statistic), abs=1e-12)


@pytest.mark.parametrize("metric", ["f1", "matthews", "spearman", "pearson"])
def test_a_model_that_always_says_the_same_has_no_correlation(metric: str) -> None:
    assert scored(metric, [0, 0, 0, 0], [0, 1, 0, 1]) == 0.0


def test_defaults_are_those_of_glue() -> None:
    names = ("glue_cola", "glue_stsb", "glue_rte", "glue_sst2", "glue_qnli", "glue_mrpc", "mine.jsonl",
             "/home/nicola/chocolate.jsonl", "a/CoLA-2.jsonl")
    found = [default_metric(name, name == "glue_stsb") for name in names]
    assert found == ["matthews", "spearman", "accuracy", "accuracy", "accuracy", "f1", "accuracy", "accuracy", "matthews"]


def test_a_metric_that_does_not_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(CorpusError, match=r"mine: metric 'spearman' is of numbers, and its labels are classes\. Use accuracy, f1,"):
        check_metric("spearman", False, "mine")
    with pytest.raises(CorpusError, match=r"metric 'accuracy' is of classes, and its labels are numbers\. Use spearman, pearson,"):
        check_metric("accuracy", True, "mine")
    check_metric("pearson", True, "mine")


def test_the_interval_of_an_accuracy_is_that_of_a_share() -> None:
    """800 of 1000 right: 0.8 +- 1.96 sqrt(0.16 / 1000) = 0.0248; 10 % for 2000 resamples."""
    right = tuple(float(index % 2) for index in range(1000))
    said = tuple(label if index % 5 else 1 - label for index, label in enumerate(right))
    score = Score("accuracy", scored("accuracy", said, right), "", said, right, 2, 0.0)
    low, high = score.interval
    assert score.value == 0.8
    assert (high - low) / 2 == pytest.approx(0.0248, rel=0.1)
    assert low < 0.8 < high


def test_an_interval_is_found_where_a_draw_lacks_a_class() -> None:
    said = right = (0.0, 1.0, 2.0)
    assert Score("f1", 1.0, "", said, right, 3, 0.0).interval == (1.0, 1.0)


def test_the_difference_of_two_models_is_paired() -> None:
    """Wrong in the same places, the two differ in one example of 40; each alone is uncertain by far more."""
    right = tuple(float(index % 2) for index in range(40))
    worse = tuple(1 - value if index < 10 else value for index, value in enumerate(right))
    better = (right[0], *worse[1:])
    scores = [Score("accuracy", scored("accuracy", said, right), "", said, right, 2, 0.0) for said in (better, worse)]
    difference, (low, high) = scores[0].above(scores[1])
    assert difference == pytest.approx(1 / 40)
    assert 0 <= low <= high <= 4 / 40
    assert scores[0].interval[1] - scores[0].interval[0] > 0.2
