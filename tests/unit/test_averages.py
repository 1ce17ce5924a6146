"""The mean of several tasks: tasks weigh the same, examples are paired over all of them, and nothing is hidden."""

import math
from typing import Any

import pytest

from prunus.comparing.averages import with_mean
from prunus.comparison import check_pair, p_value
from prunus.errors import ComparisonError
from prunus.evaluation import Example, Measurement
from prunus.uncertainty import mean_interval


def answered(name: str, right: list[int], *, how: str = "", likelihood: float = -1.0, unit: str = "share", **more: Any) -> Measurement:
    """A task's accuracy."""
    examples = tuple(Example(str(place), "0", str(1 - item), (likelihood, -2.0)) for place, item in enumerate(right))
    return Measurement(sum(right) / len(right), unit, "higher", f"{name} acc, split test, {len(right)} examples{how}, tokenizer t",
                       tuple(map(float, right)), 1.5, "means", **{"examples": examples, **more})


def test_tasks_weigh_the_same() -> None:
    text = Measurement(9.0, "perplexity", "lower", "text perplexity, p", (2.0, 2.4), 0.5)
    one, other = answered("one", [1, 0, 1, 1]), answered("other", [1, 0, 0, 0, 0, 0, 0, 0])
    *before, mean = with_mean((text, one, other))
    assert before == [text, one, other]
    assert (mean.label, mean.value, mean.better, mean.seconds) == ("mean of 2 tasks", (0.75 + 0.125) / 2, "higher", 3.0)
    assert math.fsum(mean.parts) / 12 == pytest.approx(mean.value)
    assert mean.parts[:4] == (1.5, 0.0, 1.5, 1.5)
    assert mean.interval == mean_interval(mean.parts)
    assert mean.interval[0] < mean.value < mean.interval[1]
    equal = with_mean((one, answered("other", [1, 0, 0, 0])))[-1]
    assert set(equal.parts) == {0.0, 1.0}  # so that McNemar's test, and Wilson's interval, are theirs


@pytest.mark.parametrize("measured", [
    [answered("one", [1, 0])],
    [answered("one", [1, 0]), answered("one", [1, 1])],
    [answered("one", [1, 0]), answered("other", [1, 1], unit="exact")],
    [answered("one", [1, 0]), answered("other", [1, 1], draws=(0.5, 1.0))],
    [answered("one", [1, 0]), Measurement(0.5, "share", "higher", "text agreement, p", (0.5,), 0.0, "means")],
], ids=["one", "two metrics of one", "another unit", "no mean of its parts", "a text"])
def test_what_is_no_mean_of_tasks_is_not_made_one(measured: list[Measurement]) -> None:
    assert with_mean(measured) == tuple(measured)


def test_an_example_that_is_no_number_makes_the_mean_none() -> None:
    ruined = with_mean((answered("one", [1, 0]), answered("other", [1, 1, 1], likelihood=math.nan)))[-1]
    assert list(map(math.isnan, ruined.parts)) == [False, False, True, True, True]


def test_models_are_a_pair_where_their_tasks_are() -> None:
    """How weights were stored may differ; what was asked may not."""
    tasks = [("one", [1, 0, 1]), ("other", [0, 1, 1])]
    plain, stored, longer = (with_mean([answered(name, right + more, how=how) for name, right in tasks])[-1]
                             for how, more in (("", []), (", weights stored as Q4_1", []), ("", [1])))
    check_pair(plain, stored)
    assert "weights stored as Q4_1" in stored.protocol
    with pytest.raises(ComparisonError, match="other protocols"):
        check_pair(plain, longer)


def test_what_no_task_shows_alone_all_may_show_together() -> None:
    """Each of six tasks has four examples that only the second model solves, and one that only the first does."""
    rights = ([0, 0, 0, 0, 1], [1, 1, 1, 1, 0])
    models = [[answered(f"task{place}", right + [place % 2] * 25) for place in range(6)] for right in rights]
    assert min(p_value(one.parts, other.parts) for one, other in zip(*models, strict=True)) > 0.3
    assert p_value(*(with_mean(measured)[-1].parts for measured in models)) < 0.01
