"""Sub-networks are drawn in the proportions that are asked for."""

import random
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from prunus.errors import RecipeError
from prunus.search.genome import Architectures
from prunus.search.sampling import Sampling
from prunus.search.space import Candidate

from ..genomes import prefix_of
from ..tiny import tiny_model


@cache
def genome() -> Architectures:
    return prefix_of(tiny_model("bert", num_hidden_layers=4))


def never(candidate: Candidate) -> float:
    raise AssertionError("nothing is to be looked at")


def test_uniform_draws_are_the_genome_s_own() -> None:
    one, other = random.Random(0), random.Random(0)
    assert Sampling().draw(genome(), 3, one, never) == [genome().draw(other) for _ in range(3)]


@pytest.mark.parametrize("weights", [(1.0,) * 5, (4.0, 0.0, 1.0), (1.0, 3.0)])
def test_strata_are_drawn_by_their_weights(weights: tuple[float, ...]) -> None:
    """1000 draws; the standard deviation of a count is below 16, and four of them are allowed. By the genome's own, 3 of 4 lie in
    the cheaper half."""
    space, rng = genome(), random.Random(0)
    least = space.remaining(space.smallest)
    drawn = Sampling(by="strata", strata=weights).draw(space, 1000, rng, never)
    places = Counter(min(int((space.remaining(found) - least) / (1 - least) * len(weights)), len(weights) - 1) for found in drawn)
    for place, weight in enumerate(weights):
        assert abs(places[place] - 1000 * weight / sum(weights)) <= 64
    own = [space.remaining(space.draw(rng)) < least + (1 - least) / 2 for _ in range(1000)]
    assert sum(own) > 700


def test_where_no_candidate_lies_in_a_stratum_the_nearest_is_taken() -> None:
    class Two:
        sizes, smallest, largest = (2,), (0,), (1,)

        def draw(self, rng: random.Random) -> Candidate:
            return (rng.randrange(2),)

        def remaining(self, candidate: Candidate) -> float:
            return (0.1, 1.0)[candidate[0]]

        def worn(self, model: Any, candidate: Candidate) -> Any:
            raise NotImplementedError

    for weights, nearest in (((0.0, 1.0, 0.0, 0.0, 0.0), (0,)), ((0.0, 0.0, 0.0, 1.0, 0.0), (1,))):
        assert Sampling(by="strata", strata=weights).draw(Two(), 1, random.Random(0), never) == [nearest]


def test_by_rank_the_front_is_drawn_most_and_nobody_twice() -> None:
    """A loss that falls with the depth alone: of the same depth, who has least left is on the front, and the others are behind."""
    space = genome()
    fronts, means = 0, 0.0
    for seed in range(300):
        looked: list[Candidate] = []

        def loss(candidate: Candidate, looked: list[Candidate] = looked) -> float:
            looked.append(candidate)
            return -float(candidate[0])

        (found,) = Sampling(by="pareto", pool=5).draw(space, 1, random.Random(seed), loss)
        assert len(looked) == 5
        values = {candidate: (loss(candidate), space.remaining(candidate)) for candidate in looked[:5]}
        front = [one for one in values if not any(
            other[0] <= values[one][0] and other[1] <= values[one][1] and other != values[one] for other in values.values())]
        fronts += found in front
        means += len(front) / 5
    assert fronts / 300 > means / 300 + 0.1
    both = Sampling(by="pareto", pool=4).draw(space, 4, random.Random(0), lambda candidate: 0.0)
    own = random.Random(0)
    assert Counter(both) == Counter(space.draw(own) for _ in range(4))


def test_a_rank_halves_the_chance() -> None:
    """Two candidates, and one has the lower loss at no more weights: it is drawn in two thirds of 1000, four deviations of 15."""
    space = genome()
    better, worse = (0, 0, 0), (3, 3, 47)
    counts: Counter[Candidate] = Counter()
    for seed in range(1000):
        given = iter([better, worse])

        twice = replace(space, sample=lambda rng, given=given: next(given))
        losses = {better: 0.0, worse: 1.0}
        counts.update(Sampling(by="pareto", pool=2).draw(twice, 1, random.Random(seed), losses.__getitem__))
    assert abs(counts[better] - 1000 * 2 / 3) <= 60


@pytest.mark.parametrize("settings", [{"strata": ()}, {"strata": (0.0, 0.0)}, {"strata": (1.0, -1.0)}, {"pool": 1}])
def test_settings_that_make_no_sense_are_refused(settings: Any) -> None:
    with pytest.raises(RecipeError, match="expected weights of at least one stratum"):
        Sampling(**settings)
