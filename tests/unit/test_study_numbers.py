"""What is said of several recipes over seeds: numbers and tests beside independent ones, and nothing that they do not allow."""

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from prunus.errors import ComparisonError
from prunus.evaluation import Measurement
from prunus.significance import holm, sign_flips
from prunus.studying.numbers import Number, Series, number_of
from prunus.studying.numbers import tested as told


def measured(parts: Sequence[float], kind: Literal["losses", "means"] = "losses", **more: Any) -> Measurement:
    mean = math.fsum(parts) / len(parts)
    better: Literal["lower", "higher"] = "lower" if kind == "losses" else "higher"
    return Measurement(math.exp(mean) if kind == "losses" else mean, "perplexity" if kind == "losses" else "share", better,
                       more.pop("protocol", "text perplexity, p"), tuple(parts), 0.0, kind, **more)


def series(name: str, level: str, centres: Sequence[float], noise: float = 0.05, **more: Any) -> Series:
    """A seed per centre; windows that are hard for one are hard for all."""
    drawn = random.Random(name)
    hard = random.Random(0)
    windows = [hard.gauss(0, 0.5) for _ in range(60)]
    found = {seed: measured([centre + window + drawn.gauss(0, noise) for window in windows]) for seed, centre in enumerate(centres)}
    return Series(name, level, found, **more)


def test_means_deviations_and_p_values_are_those_of_others() -> None:
    stats = pytest.importorskip("scipy.stats")
    one, other = series("a", "50", [3.0, 3.1, 3.05]), series("b", "50", [3.02, 3.14, 3.09])
    values = [[item.value for item in each.seeds.values()] for each in (one, other)]
    assert one.mean == pytest.approx(sum(values[0]) / 3)
    assert one.deviation == pytest.approx(statistics.stdev(values[0]))
    over_seeds = stats.ttest_rel(values[1], values[0]).pvalue
    parts = [[sum(window) / 3 for window in zip(*(item.parts for item in each.seeds.values()), strict=True)] for each in (one, other)]
    over_windows = sign_flips(*parts)
    difference, p = told(one, other)
    assert difference == pytest.approx(other.mean - one.mean)
    assert p == pytest.approx(max(over_seeds, over_windows))
    assert over_windows < over_seeds


def test_with_one_seed_examples_decide_and_right_and_wrong_are_mcnemar_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    drawn = random.Random(1)
    right = [[float(drawn.random() < share) for _ in range(200)] for share in (0.7, 0.5)]
    one, other = (Series(name, "", {0: measured(parts, "means")}) for name, parts in zip("ab", right, strict=True))
    only = [sum(a > b for a, b in zip(*pair, strict=True)) for pair in (right, right[::-1])]
    assert told(one, other)[1] == pytest.approx(stats.binomtest(min(only), sum(only)).pvalue)


def test_what_seeds_do_not_change_is_compared_by_examples_alone_and_with_others_seed_by_seed() -> None:
    same = {seed: series("a", "50", [3.0]).seeds[0] for seed in range(3)}
    one, other = Series("a", "50", same, fixed=True), Series("b", "50", {seed: measured([4.0] * 60) for seed in range(3)}, fixed=True)
    assert one.values == (one.mean,)
    assert math.isnan(one.deviation)
    assert told(one, other)[1] == pytest.approx(1 / 10001)
    drawn = series("c", "50", [3.2, 2.9, 3.3])
    assert told(one, drawn)[1] > 0.05


def test_a_difference_must_hold_over_seeds_and_over_examples() -> None:
    """By windows a and b differ in every one of them; by seeds it may be chance. And the other way round."""
    by_windows = told(series("a", "50", [3.0, 3.0, 3.0], 0.01), series("b", "50", [3.5, 2.9, 3.4], 0.01))
    assert by_windows[1] > 0.05
    windows = [random.Random(5).gauss(0, 3) for _ in range(20)]
    one, other = ({seed: measured([3 + shift * (place % 2 - 0.4) + 0.001 * seed for place in range(len(windows))]) for seed in range(6)}
                  for shift in (0.0, 1.0))
    assert told(Series("a", "", one), Series("b", "", other))[1] > 0.05


def test_tests_that_point_in_opposite_directions_show_nothing() -> None:
    """The mean of perplexities grows by one bad seed, the mean of losses falls."""
    one = {seed: measured([3.0] * 20) for seed in range(2)}
    other = {0: measured([0.1] * 20), 1: measured([5.5] * 20)}
    difference, p = told(Series("a", "", one), Series("b", "", other))
    assert difference > 0
    assert p == 1.0


def number(*found: Series) -> Number:
    return number_of(measured([2.0] * 60), found)


def test_better_and_best_are_said_only_where_holm_s_correction_allows_it() -> None:
    found = [series("base", "50", [3.0, 3.01, 3.02], ranks=True), series("worse", "50", [4.0, 4.02, 4.01]),
             series("better", "50", [2.0, 2.02, 2.01]), series("same", "50", [3.01, 3.0, 3.02]), series("alone", "70", [2.0, 2.1, 2.0])]
    got = number(*found)
    said = {entry.series.name: entry.against.said if entry.against else "" for entry in got.entries}
    assert said == {"base": "", "worse": "worse", "better": "better", "same": "open", "alone": ""}
    assert [entry.series.name for entry in got.entries if entry.best] == ["better"]
    expected = holm({one.name: told(found[0], one)[1] for one in found[1:4]})
    assert {entry.series.name: entry.against.p for entry in got.entries if entry.against} == pytest.approx(expected)
    level, = got.levels
    assert level.comparisons == 3 + 6
    assert level.verdict == ("better is better than base; worse is worse than base; same cannot be told from base. better is better than "
                             "base, same, worse (p < 0.05 after Holm's correction for 6 comparisons).") or "same, base" in level.verdict


def test_equal_recipes_are_called_different_no_more_often_than_the_level() -> None:
    """200 studies of three equal recipes with three seeds: 5 % are 10, and 19 is three deviations of the count above it."""
    against = best = 0
    for trial in range(200):
        drawn = random.Random(trial)
        hard = [drawn.gauss(0, 0.3) for _ in range(13)]

        def once(drawn: random.Random = drawn, hard: Sequence[float] = hard) -> Measurement:
            shift = drawn.gauss(0, 0.02)
            return measured([3 + window + shift + drawn.gauss(0, 0.05) for window in hard])

        got = number(*(Series(name, "50", {seed: once() for seed in range(3)}, ranks=name == "a") for name in "abc"))
        against += any(entry.against and entry.against.said != "open" for entry in got.entries)
        best += not all(entry.best for entry in got.entries)
    assert against <= 19
    assert best <= 19


def test_seeds_that_are_missing_are_not_made_up() -> None:
    whole, part = series("a", "50", [3.0, 3.1, 3.2], ranks=True), series("b", "50", [3.5, 3.6, 3.7])
    part = Series("b", "50", {seed: item for seed, item in part.seeds.items() if seed != 1})
    assert part.mean == pytest.approx((part.seeds[0].value + part.seeds[2].value) / 2)
    difference, _ = told(whole, part)
    common = (whole.seeds[0].value + whole.seeds[2].value) / 2
    assert difference == pytest.approx(part.mean - common)
    empty = number(whole, Series("c", "50", {}))
    assert math.isnan(empty.entries[1].series.mean)
    assert empty.entries[1].against is None
    assert not any(entry.best for entry in empty.entries)


def test_what_is_not_finite_takes_part_in_no_test() -> None:
    ruined = Series("b", "50", {seed: measured([math.inf] + [3.0] * 59) for seed in range(2)})
    got = number(series("a", "50", [3.0, 3.1], ranks=True), ruined, series("c", "50", [5.0, 5.1]))
    assert [entry.against is None for entry in got.entries] == [True, True, False]
    assert not got.entries[1].best


def test_a_number_that_is_no_mean_has_only_the_test_over_seeds() -> None:
    one, other = ({seed: measured([0.1, 0.2], "means", draws=(0.1, 0.2)) for seed in range(2)} for _ in range(2))
    assert told(Series("a", "", one), Series("b", "", other))[1] == 1.0
    got = number_of(one[0], [Series("a", "", {0: one[0]}, ranks=True), Series("b", "", {0: other[0]})])
    assert got.entries[1].against is not None
    assert got.entries[1].against.p is None
    assert not any(entry.best for entry in got.entries)
    assert got.levels == ()


@pytest.mark.parametrize(("apart", "width"), [(0.3, 0.01), (0.3, 1.0)])
def test_over_examples_such_a_number_has_an_interval_that_must_leave_no_difference_out(apart: float, width: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    drawn = random.Random(3)

    def once(centre: float) -> Measurement:
        return Measurement(centre, "share", "lower", "text error, p", (0.1,) * 20, 0.0, "means",
                           tuple(drawn.gauss(centre, width) for _ in range(200)))

    values = [[0.1, 0.11, 0.12], [0.1 + apart, 0.12 + apart, 0.13 + apart]]
    one, other = (Series(name, "", dict(enumerate(map(once, each)))) for name, each in zip("ab", values, strict=True))
    p = told(one, other)[1]
    assert p == pytest.approx(stats.ttest_rel(*values).pvalue if width < 0.1 else 1.0)


def test_other_protocols_are_no_pair() -> None:
    with pytest.raises(ComparisonError, match="measured by other protocols"):
        told(Series("a", "", {0: measured([1.0])}), Series("b", "", {0: measured([1.0], protocol="text perplexity, q")}))
