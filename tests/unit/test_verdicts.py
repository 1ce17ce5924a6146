"""What a comparison says of numbers: only what tests allow, and of what is no pair nothing."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from prunus.achieved import Counted
from prunus.comparing.values import Contender, Made, Row
from prunus.comparing.verdicts import flags_of, notes_of, rows_of
from prunus.errors import ComparisonError
from prunus.evaluation import Example, Measurement
from prunus.result import SiteRecord
from prunus.speed import Timing

PROTOCOL = "plums test perplexity, text sha256 1, float32"


def losses(parts: Sequence[float], protocol: str = PROTOCOL) -> Measurement:
    mean = sum(parts) / len(parts)
    return Measurement(math.exp(mean), "perplexity", "lower", protocol, tuple(parts), 0.0)


def answers(parts: Sequence[float], likelihood: float = -1.0) -> Measurement:
    examples = tuple(Example(str(place), "0", "0", (likelihood, -2.0)) for place in range(len(parts)))
    return Measurement(sum(parts) / len(parts), "share", "higher", "piqa acc, float32", tuple(map(float, parts)), 0.0, "means",
                       examples=examples)


def model(name: str, *measured: Measurement, **changes: Any) -> Contender:
    settings = {"parameters": 1000, "bytes": 4000, "file_bytes": 4100, "sparsity": 0.0, "matrices": (), "blocks": 2, "made": None}
    return Contender(name, name, name, "float32", **{**settings, **changes}, measured=measured)


def noise(seed: int, count: int = 40, size: float = 0.01) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0, size) for _ in range(count)]


def shifted(by: float, seed: int) -> Measurement:
    return losses([3 + place / 10 + by + extra for place, extra in enumerate(noise(seed))])


def first(rows: Sequence[Row], label: str) -> Row:
    return next(row for row in rows if row.label == label)


def test_bold_are_the_best_pruned_model_and_those_that_cannot_be_told_from_it() -> None:
    row = rows_of([model("d", shifted(0, 1)), model("a", shifted(0.1, 2)), model("b", shifted(0.1, 3)), model("c", shifted(0.5, 4))], "")[0]
    assert [entry.best for entry in row.entries] == [False, True, True, False]
    assert [entry.beside and entry.beside.said for entry in row.entries] == [None, "worse", "worse", "worse"]
    assert row.comparisons == 3 + 3
    assert row.verdict.startswith("a, b, c are worse than the dense model. ")
    assert "better than c (p < 0.05 after Holm's correction for 3 comparisons)" in row.verdict


def test_better_is_said_of_a_model_that_beats_dense_and_it_is_flagged() -> None:
    models = [model("d", shifted(0, 1)), model("a", shifted(-0.1, 2))]
    row = rows_of(models, "")[0]
    assert row.entries[1].beside.said == "better"
    assert row.verdict == "a is better than the dense model."
    flag, = flags_of(models, {"a": ()})
    assert flag.startswith("a may be reward-hacked: plums test perplexity is better than the dense model's")


def test_a_difference_within_noise_is_left_open() -> None:
    row = rows_of([model("d", shifted(0, 1)), model("a", shifted(0, 5))], "")[0]
    assert row.entries[1].beside.said == "open"
    assert row.entries[1].beside.p >= 0.05
    assert row.verdict == "a cannot be told from the dense model."
    assert row.entries[1].best  # alone among the pruned models


def test_p_values_are_corrected_for_the_number_of_pruned_models() -> None:
    dense = answers([1, 0] * 10)
    worse = answers([0 if place < 12 else part for place, part in enumerate([1, 0] * 10)])  # 6 of 20 lost: p = 2 / 2**6
    alone = rows_of([model("d", dense), model("a", worse)], "")[0]
    assert alone.entries[1].beside.p == 2 / 2**6
    assert alone.entries[1].beside.said == "worse"
    both = rows_of([model("d", dense), model("a", worse), model("b", worse)], "")[0]
    assert both.entries[1].beside.p == 4 / 2**6
    assert both.entries[1].beside.said == "open"


def test_a_number_that_is_no_mean_of_its_parts_has_no_test_but_its_interval() -> None:
    def error(value: float) -> Measurement:
        return Measurement(value, "share", "lower", "plums test calibration error, 15 bins", (value,) * 20, 0.0, "means",
                           draws=tuple(value + place / 1e4 for place in range(20)))

    row = rows_of([model("d", error(0.1)), model("a", error(0.2))], "")[0]
    assert row.comparisons == 0
    assert row.entries[1].beside.p is None
    assert row.entries[1].beside.said == "worse"
    assert not row.entries[1].best


def test_what_is_not_finite_takes_part_in_nothing() -> None:
    ruined = losses([math.nan] * 40)
    models = [model("d", shifted(0, 1)), model("a", ruined), model("b", shifted(0.1, 2))]
    row = rows_of(models, "")[0]
    assert (row.entries[1].beside, row.entries[1].interval, row.entries[1].best) == (None, None, False)
    assert row.entries[2].best
    assert row.comparisons == 1
    assert flags_of(models, {"a": (), "b": ()}) == (
        "a is ruined or overflows: plums test perplexity is not finite in 40 of 40 windows or examples, the first is 0. It takes part in "
        "no test of these.",)


def test_choices_by_likelihoods_that_are_no_numbers_count_for_nothing() -> None:
    models = [model("d", answers([0, 1] * 5)), model("a", answers([1] * 10, math.nan))]
    assert not rows_of(models, "")[0].entries[1].best
    assert "a is ruined" in flags_of(models, {"a": ()})[0]


def test_a_ruined_dense_model_is_compared_with_nothing() -> None:
    row = rows_of([model("d", losses([math.inf] * 40)), model("a", shifted(0, 1)), model("b", shifted(1, 1))], "")[0]
    assert [entry.beside for entry in row.entries] == [None, None, None]
    assert [entry.best for entry in row.entries] == [False, True, False]


def test_two_protocols_are_never_in_one_row() -> None:
    with pytest.raises(ComparisonError, match="d and a: measured by other protocols: 'text sha256 1' and 'text sha256 2'"):
        rows_of([model("d", shifted(0, 1)), model("a", losses([1.0] * 40, PROTOCOL.replace("256 1", "256 2")))], "")


def test_speed_is_better_where_every_round_says_so() -> None:
    base = Timing((100.0, 110.0, 90.0), (0.1, 0.1, 0.1), (20.0, 22.0, 18.0), 4000)
    faster = Timing((130.0, 143.0, 117.0), (0.1, 0.09, 0.11), (30.0, 33.0, 27.0), 3000)
    same = Timing((101.0, 109.0, 90.0), (0.1, 0.1, 0.1), (20.0, 22.0, 18.0), 4000)
    models = [model(name, timing=timing) for name, timing in (("d", base), ("a", faster), ("b", same))]
    rows = rows_of(models, "in turn")
    read = first(rows, "tokens read per second")
    assert read.entries[1].beside.value == pytest.approx(1.3)
    assert [entry.beside and entry.beside.said for entry in read.entries] == [None, "better", "open"]
    assert [entry.best for entry in read.entries] == [False, True, False]
    assert read.protocol == "tokens read per second, in turn"
    latency = first(rows, "milliseconds to the first token")
    assert latency.entries[0].value == pytest.approx(100.0)
    assert latency.entries[1].beside.said == "open"
    assert [entry.best for entry in latency.entries] == [False, True, True]


def test_sizes_are_exact_and_what_nobody_knows_has_no_row() -> None:
    rows = rows_of([model("d"), model("a", parameters=800, file_bytes=None), model("b")], "")
    sizes = first(rows, "parameters")
    assert [entry.best for entry in sizes.entries] == [False, True, False]
    assert sizes.entries[1].beside.value == 0.8
    assert first(rows, "weight files").entries[1] is None
    assert "peak memory of a process" not in [row.label for row in rows]


def test_notes_tell_of_weights_that_are_not_what_was_asked() -> None:
    made = Made("", (SiteRecord("x", 0.5, 0.5, None, 0.0),), None, None, None, None)
    short = model("a", matrices=(Counted("x", 100, 20, 0),), made=made, sparsity=0.2)
    assert notes_of([model("d"), short, model("b", sparsity=None)]) == (
        "a: In 1 of 1 matrices less is zero or gone than was asked of them, most of all in x: 20.00% counted, 50.00% asked.",
        "b: its matrices are not what is left of d's, so no sparsity is counted.")
