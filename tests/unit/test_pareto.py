"""Fronts, hypervolumes, ranks and picks, against brute force and against pymoo's own."""

import itertools
import math
import sys
from typing import Any

import numpy
import pytest

from prunus.errors import MissingExtra, RecipeError
from prunus.search.pareto import bootstrap_ranks, front, hypervolume, knee, order, pick, quantiles, ranks, regret

SHAPES = [(rows, objectives, seed) for rows, objectives in ((1, 2), (7, 2), (200, 2), (60, 3), (40, 5)) for seed in range(4)]
NAMES = ("error", "params")
POINTS = [(0.10, 1.0), (0.11, 0.7), (0.13, 0.5), (0.30, 0.2), (0.45, 0.1), (0.50, 0.6), (math.inf, 0.05)]


def drawn(rows: int, objectives: int, seed: int) -> Any:
    """Values on a grid, so that many are equal, in one objective or in all; some are no numbers."""
    rng = numpy.random.default_rng(seed)
    values = rng.integers(0, 12, size=(rows, objectives)) / 4 - 1
    values[rng.random(rows) < 0.1, 0] = numpy.inf
    values[rng.random(rows) < 0.05, -1] = numpy.nan
    return values


def dominates(one: Any, other: Any) -> bool:
    return bool((one <= other).all() and (one < other).any())


def by_hand(values: Any) -> list[int]:
    finite = [index for index, row in enumerate(values) if numpy.isfinite(row).all()]
    return [index for index in finite if not any(dominates(values[other], values[index]) for other in finite)]


@pytest.mark.parametrize(("rows", "objectives", "seed"), SHAPES)
def test_the_front_is_what_nobody_dominates(rows: int, objectives: int, seed: int) -> None:
    values = drawn(rows, objectives, seed)
    assert front(values).tolist() == by_hand(values)


@pytest.mark.parametrize(("rows", "objectives", "seed"), SHAPES)
def test_ranks_and_volumes_are_pymoo_s(rows: int, objectives: int, seed: int) -> None:
    from pymoo.indicators.hv import HV
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    values = drawn(rows, objectives, seed)
    values = values[numpy.isfinite(values).all(1)]
    if len(values):
        fronts = NonDominatedSorting().do(values)
        assert [sorted(members) for members in fronts] == [numpy.flatnonzero(ranks(values) == rank).tolist() for rank in range(len(fronts))]
        corner = [1.6] * objectives  # some points lie beyond it
        assert hypervolume(values, corner) == pytest.approx(float(HV(ref_point=numpy.array(corner))(values)), abs=1e-12)


def test_a_volume_is_the_share_of_random_points_that_are_dominated() -> None:
    values, points = drawn(20, 2, 1), numpy.random.default_rng(0).uniform(-1, 2, size=(40_000, 2))
    beaten = (values[front(values)][:, None] <= points).all(2).any(0).mean()
    assert hypervolume(values, (2.0, 2.0)) == pytest.approx(9 * beaten, abs=0.05)


def test_more_points_never_have_less_volume() -> None:
    values = drawn(50, 2, 0)
    volumes = [hypervolume(values[:count], (2.0, 2.0)) for count in range(51)]
    assert volumes == sorted(volumes)
    assert volumes[0] == 0 < volumes[-1]


def test_equal_points_are_all_on_the_front_and_nobody_without_a_number_is() -> None:
    assert front([(1, 2), (1, 2), (2, 1), (2, 2), (math.nan, 0), (-math.inf, 0), (-0.0, 3), (0.0, 3)]).tolist() == [0, 1, 2, 6, 7]
    assert front([]).tolist() == []
    assert front([(math.inf, 1.0)]).tolist() == []


def test_a_front_of_many_points_takes_no_time() -> None:
    """A million comparisons of rows in Python would take seconds; 20 000 points on one front, and 20 000 behind them."""
    along = numpy.linspace(0, 1, 20_000)
    values = numpy.concatenate([numpy.column_stack([along, 1 - along]), numpy.column_stack([along, 2 - along])])
    assert len(front(values)) == 20_000


def test_the_order_is_by_rank_and_then_by_distance() -> None:
    assert order([(0, 4), (1, 3), (1.1, 2.9), (4, 0), (5, 5), (math.inf, 0)]).tolist()[-2:] == [4, 5]
    assert set(order([(0, 4), (1, 3), (1.1, 2.9), (4, 0)]).tolist()[:2]) == {0, 3}
    assert order([(0, 4), (1, 3), (1.1, 2.9), (4, 0)]).tolist()[2] == 2  # its neighbours are farther apart


def test_quantiles_are_joint_and_know_no_scale() -> None:
    found = quantiles({"a": [(1.0, 10.0), (3.0, 1e9)], "b": [(2.0, 20.0), (2.0, math.inf), (5.0, 15.0)]})
    assert found["a"].tolist() == [[0.0, 0.0], [0.75, 1.0]]
    assert found["b"].tolist() == [[0.375, pytest.approx(2 / 3)], [0.375, math.inf], [1.0, pytest.approx(1 / 3)]]
    again = quantiles({"a": [(math.exp(1), 1.0), (math.exp(3), 9.0)],
                       "b": [(math.exp(2), 3.0), (math.exp(2), math.inf), (math.exp(5), 2.0)]})
    assert [again[name].tolist() for name in again] == [found[name].tolist() for name in found]


def test_regret_is_nothing_at_the_ideal_point_and_four_where_nothing_is() -> None:
    assert regret([(0.0, 0.0), (1.0, 1.0)]) == 0
    assert regret([(math.inf, 0.0)]) == 4
    assert regret([(0.0, 1.0), (1.0, 0.0)]) == pytest.approx(1.0)
    assert regret([(0.0, 0.0, 0.0)]) == 0


def test_bootstrapped_ranks_are_sure_where_repeats_agree_and_not_where_they_do_not() -> None:
    found = bootstrap_ranks({"best": [1.0, 1.1, 0.9], "worst": [9.0, 8.0, 9.5], "like best": [1.0, 1.1, 0.9]})
    assert (found["worst"].low, found["worst"].mean, found["worst"].high) == (3, 3, 3)
    assert found["best"].mean == pytest.approx(1.5, abs=0.05)
    assert (found["best"].low, found["best"].high) == (1, 2)
    equal = bootstrap_ranks({"a": [[1.0], [2.0]], "b": [[1.0], [3.0]]})
    assert (equal["a"].mean, equal["b"].mean) == (1.25, 1.75)
    ragged = bootstrap_ranks({"a": [[1.0, 1.1], [2.0]], "b": [[2.0], [1.0, 1.5, 1.2]]})
    assert (ragged["a"].mean, ragged["b"].mean) == (1.5, 1.5)
    assert bootstrap_ranks({"a": [1.0, 2.0], "b": [1.5, 1.6]}, seed=1) == bootstrap_ranks({"a": [1.0, 2.0], "b": [1.5, 1.6]}, seed=1)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(RecipeError, match="scores of b are none"):
        bootstrap_ranks({"a": [1.0], "b": []})
    with pytest.raises(RecipeError, match="the scores of b are none"):
        bootstrap_ranks({"a": [[1.0], [2.0]], "b": [[1.0], []]})
    with pytest.raises(RecipeError, match="scores of a are not all finite"):
        bootstrap_ranks({"a": [math.inf], "b": [1.0]})
    with pytest.raises(RecipeError, match="a, b differ in their number of tasks"):
        bootstrap_ranks({"a": [[1.0], [1.0]], "b": [1.0]})


def test_the_knee_is_farthest_from_the_line_between_the_ends() -> None:
    assert knee([(0, 1), (0.2, 0.3), (1, 0), (0.5, 0.45)]) == 1
    assert knee([(0, 1000), (0.2, 300), (1, 0)]) == 1
    assert knee([(3.0, 3.0)]) == 0
    for seed in range(5):
        values = drawn(60, 2, seed)
        members = by_hand(values)
        points = values[members]
        (x0, y0), (x1, y1) = min(points.tolist()), max(points.tolist())
        below = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in points.tolist()]  # twice a triangle's area, signed
        assert below[members.index(knee(values))] == pytest.approx(min(below))


def test_a_pick_keeps_to_its_limits_and_is_best_in_what_is_free() -> None:
    assert pick(POINTS, NAMES, ["params<=0.5"]) == 2
    assert pick(POINTS, NAMES, ["params<0.5"]) == 3
    assert pick(POINTS, NAMES, [" error <= 0.12"]) == 1
    assert pick(POINTS, NAMES, ["params<=0.9", "error<=0.2"]) == 1  # all have a limit: the first objective decides
    assert pick(POINTS, NAMES) == knee(POINTS)


def test_a_pick_is_the_best_of_all_points_that_keep_to_it() -> None:
    for limit, seed in itertools.product((-0.5, 0.25, 1.0), range(5)):
        values = drawn(50, 3, seed)
        kept = [tuple(row[:2]) for row in values.tolist() if numpy.isfinite(row).all() and row[2] <= limit]
        assert tuple(values[pick(values, ("a", "b", "c"), [f"c<={limit}"])][:2]) == min(kept)


def test_a_share_that_is_summed_up_to_a_limit_keeps_to_it() -> None:
    rows = [(0.2, 0.1 + 0.2), (0.9, 0.1)]
    assert rows[0][1] > 0.3
    assert pick(rows, ("error", "params"), ["params<=0.3"]) == 0
    assert pick(rows, ("error", "params"), ["params<0.3"]) == 1


def test_a_pick_that_no_point_keeps_to_names_the_nearest() -> None:
    said = r"params<=0\.05: no point of the front keeps to that\. The nearest has error = 0\.45, params = 0\.1"
    with pytest.raises(RecipeError, match=said):
        pick(POINTS, NAMES, ["params<=0.05"])
    with pytest.raises(RecipeError, match=r"The nearest has error = 0\.13, params = 0\.5"):
        pick(POINTS, NAMES, ["params<=0.45", "error<=0.14"])


@pytest.mark.parametrize(("text", "said"), [
    ("parms<=0.5", "no objective of this search. Did you mean 'params'"), ("params>=0.5", "such as params<=0.5"),
    ("params", "such as params<=0.5"), ("params<=half", "such as params<=0.5"), ("params<=nan", "such as params<=0.5"),
])
def test_a_limit_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said.replace("?", r"\?")):
        pick(POINTS, NAMES, [text])


def test_values_that_are_no_table_are_refused() -> None:
    with pytest.raises(RecipeError, match="two or more objectives"):
        front([1.0, 2.0])
    with pytest.raises(RecipeError, match="two or more objectives"):
        front([[1.0], [2.0]])
    with pytest.raises(RecipeError, match="the reference has 3 values, and there are 2 objectives"):
        hypervolume(POINTS, (1.0, 1.0, 1.0))
    with pytest.raises(RecipeError, match="no point has finite values"):
        pick([(math.inf, math.inf)], NAMES)
    with pytest.raises(RecipeError, match="differ in their number of objectives"):
        quantiles({"a": [(1, 2)], "b": [(1, 2, 3)]})


def test_volumes_of_three_objectives_need_pymoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo.indicators.hv", None)
    with pytest.raises(MissingExtra, match=r"pip install 'prunus\[search\]'"):
        hypervolume([(0, 0, 0)], (1.0, 1.0, 1.0))
    assert hypervolume([(0, 0)], (1.0, 1.0)) == 1
