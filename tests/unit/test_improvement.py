"""Expected hypervolume improvement where costs are known."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import pytest

from prunus.search.explore import explore
from prunus.search.explored import Explored
from prunus.search.improvement import _Staircase, likeliest
from prunus.search.pareto import hypervolume
from prunus.search.searchers import Question, Trial
from prunus.search.searchers.ehvi import EHVI
from prunus.search.space import Candidate

from ..toys import Toy, priced

COSTS = numpy.array([[0.1], [0.3], [0.35], [0.6], [1.0]])
VALUES = numpy.array([0.9, 0.5, 0.6, 0.2, 0.15])
NONE = numpy.full(4, 1e-9)


@dataclass(frozen=True)
class Told(Toy):
    """Its second objective is known without a look."""

    def told(self, candidate: Candidate) -> tuple[float | None, ...]:
        return None, priced(self)(Question(candidate))[1]


def gained(rows: Sequence[Sequence[float]], new: Sequence[float], corner: Sequence[float]) -> float:
    return hypervolume([*rows, new], corner) - hypervolume(rows, corner)


def test_what_is_sure_to_come_adds_what_it_adds_to_the_hypervolume() -> None:
    known = _Staircase.of(COSTS, VALUES)
    new, asked = numpy.array([0.4, 0.7, 0.1, 0.15]), numpy.array([[0.2], [0.5], [0.05], [0.9]])
    corner = (0.9 + 0.1 * 0.75, 1.0 + 0.1 * 0.9)
    rows = [(value, cost) for value, (cost,) in zip(VALUES.tolist(), COSTS.tolist(), strict=True)]
    expected = [gained(rows, (value, cost), corner) for value, (cost,) in zip(new.tolist(), asked.tolist(), strict=True)]
    assert known.gains(asked, new, NONE) == pytest.approx(expected, abs=1e-6)
    assert expected[1] == 0 < expected[3]


def test_what_is_unsure_adds_the_mean_of_what_it_may_add() -> None:
    rng = numpy.random.default_rng(0)
    known = _Staircase.of(COSTS, VALUES)
    drawn = rng.normal(0.45, 0.2, 20_000)
    sure = known.gains(numpy.full((20_000, 1), 0.4), drawn, numpy.full(20_000, 1e-9))
    assert known.gains(numpy.array([[0.4]]), numpy.array([0.45]), numpy.array([0.2])) == pytest.approx([sure.mean()], rel=0.03)


def test_with_two_costs_it_is_near_the_volume_of_three_objectives() -> None:
    rng = numpy.random.default_rng(0)
    costs, values = rng.uniform(0.1, 1, (30, 2)), rng.uniform(0.1, 1, 30)
    known = _Staircase.of(costs, values)
    corner = [float(column.max() + 0.1 * numpy.ptp(column)) for column in (values, *costs.T)]
    rows = numpy.column_stack([values, costs]).tolist()
    asked = rng.uniform(0.1, 0.6, (20, 2))
    found = known.gains(asked, numpy.full(20, 0.2), numpy.full(20, 1e-9))
    expected = [gained(rows, (0.2, *row), corner) for row in asked.tolist()]
    assert numpy.corrcoef(found, expected)[0, 1] > 0.98
    assert found == pytest.approx(expected, abs=0.02)


def test_known_costs_are_worth_more_than_modelled_ones() -> None:
    """Medians of three seeds, 24 evaluations."""
    found = {}
    for genome in (Told((13,) * 4), Toy((13,) * 4)):
        runs = [explore(genome, EHVI(), priced(genome), ("loss", "cost"), 24, seed).values for seed in range(3)]
        found[type(genome)] = statistics.median(hypervolume(values, (1.6, 1.1)) for values in runs)
    assert found[Told] > found[Toy]


def test_questions_at_the_same_time_are_apart() -> None:
    """What is being valued is believed, so that the next one does not lie beside it for the same reason."""
    genome = Told((50, 50))
    trials = tuple(Trial(candidate, priced(genome)(Question(candidate)))
                   for candidate in [(49, 49), (0, 0), (24, 24), (10, 40), (40, 10), (5, 20), (30, 30), (20, 5)])
    state = Explored(genome, 0, trials)
    first = likeliest(state, state.values, genome.told, 0, random.Random(0), [])
    assert first is not None
    alone, beside = (likeliest(state, state.values, genome.told, 0, random.Random(0), asked) for asked in ([], [first]))
    assert alone == first != beside
    assert beside is not None
    assert abs(genome.remaining(beside) - genome.remaining(first)) > 0.01


def test_the_last_candidates_are_found_and_then_none() -> None:
    genome = Told((2, 3))
    assert len(explore(genome, EHVI(startup=2), priced(genome), ("loss", "cost"), 100).trials) == 6
