"""Candidates: levels within a budget, counted in weights."""

import random

import pytest

from prunus.budget import Budget
from prunus.errors import RecipeError
from prunus.search.space import Space
from prunus.sites import ChannelSite, LinearSite, Producer

SITES = tuple(LinearSite(f"s{index}", index, (size, 10), "x") for index, size in enumerate((3, 10, 10, 27)))
LEVELS = (0.4, 0.5, 0.6, 0.7, 0.8)
SPACE = Space(SITES, LEVELS, Budget(0.4))


def test_an_allocation_names_every_site() -> None:
    assert SPACE.allocation((0, 1, 2, 4)) == {"s0": 0.4, "s1": 0.5, "s2": 0.6, "s3": 0.8}


def test_what_goes_is_counted_in_weights() -> None:
    assert SPACE.required == pytest.approx(300)
    assert SPACE.removed((0, 1, 2, 4)) == pytest.approx(12 + 50 + 60 + 216)
    assert SPACE.met((2, 2, 2, 2))
    assert not SPACE.met((4, 1, 2, 2))


def test_the_nearest_candidate_is_the_allocation_itself_where_it_can_be() -> None:
    for candidate in ((2, 2, 2, 2), (0, 3, 1, 2)):
        if SPACE.met(candidate):
            assert SPACE.nearest(SPACE.allocation(candidate)) == candidate


@pytest.mark.parametrize("asked", [{"s0": 0.45, "s1": 0.45, "s2": 0.5, "s3": 0.71}, {"s0": 0.1, "s1": 0.1, "s2": 0.1, "s3": 0.1},
                                   {"s0": 1.0, "s1": 1.0, "s2": 1.0, "s3": 1.0}])
def test_the_nearest_candidate_meets_the_budget_and_nothing_more(asked: dict[str, float]) -> None:
    nearest = SPACE.nearest(asked)
    assert SPACE.met(nearest)
    for index, level in enumerate(nearest):
        assert level == 0 or not SPACE.met((*nearest[:index], level - 1, *nearest[index + 1 :]))


@pytest.mark.parametrize("seed", range(20))
def test_draws_and_neighbours_meet_the_budget_and_nothing_is_left_to_give_back(seed: int) -> None:
    rng = random.Random(seed)
    candidate = SPACE.draw(rng)
    assert SPACE.met(candidate)
    near = SPACE.neighbour(candidate, rng, switches=2)
    assert SPACE.met(near)
    assert near != candidate or candidate == (4, 4, 4, 4)
    assert SPACE.removed(candidate) - SPACE.required <= 270 * 0.1 + 1e-6


def test_a_neighbour_of_a_full_candidate_exists() -> None:
    space = Space(SITES, (0.4, 0.6), Budget(0.4))
    assert space.neighbour((1, 1, 1, 1), random.Random(0)) == (1, 1, 1, 1)


@pytest.mark.parametrize(("levels", "message"), [
    ((0.5, 0.4, 0.7), "expected ascending"), ((0.5, 0.5, 0.7), "expected ascending"), ((0.5, 1.0), "expected ascending"),
    ((-0.1, 0.7), "expected ascending"), ((), "both sides"), ((0.1, 0.5), "both sides"), ((0.7, 0.8), "both sides"),
])
def test_levels_that_cannot_meet_the_budget_are_refused(levels: tuple[float, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Space(SITES, levels, Budget(0.4))


def test_what_really_goes_counts_and_levels_at_which_the_same_goes_are_one() -> None:
    """3 heads beside 20 channels: of the heads, a third goes at every level from a sixth to a half."""
    heads = ChannelSite("heads", 0, 3, "o", 4, (Producer("q", 4),), 1200)
    channels = ChannelSite("channels", 0, 20, "down", 1, (Producer("up", 1),), 2000)
    space = Space((heads, channels), (0.0, 0.1, 0.2, 0.3, 0.6), Budget(0.8))
    assert space.gone[0] == pytest.approx((0, 0, 400, 400, 800))
    assert space.removed((2, 2)) == pytest.approx(400 + 400)
    assert space.nearest({"heads": 0.3, "channels": 0.1}) == (2, 2)
    assert space.shares((2, 2)) == pytest.approx([1 / 3, 0.2])
    rng = random.Random(0)
    near = {space.neighbour((2, 2), rng) for _ in range(20)} | {space.draw(rng) for _ in range(20)}
    assert all(space.met(candidate) for candidate in near)
    assert {heads for heads, _ in near} == {0, 2, 4}


def test_a_neighbour_by_block_moves_whole_blocks() -> None:
    sites = tuple(LinearSite(f"s{index}", index // 2, (10, 10), "x") for index in range(8))
    space = Space(sites, LEVELS, Budget(0.4))
    first = space.nearest({site.name: 0.6 for site in sites})
    second = space.neighbour(first, random.Random(0), per="block")
    moves = [after - before for before, after in zip(first, second, strict=True)]
    assert moves[::2] == moves[1::2]
    assert sorted(moves[::2]) == [-1, 0, 0, 1]


def test_departures_are_in_steps_that_a_site_can_take() -> None:
    """Three groups of heads go one by one: a twentieth of them is no step."""
    sites = tuple(ChannelSite(f"layers.{index}.channels", index, count, f"layers.{index}.out", 1, (), 60)
                  for index, count in enumerate((3, 3, 60, 60)))
    space = Space(sites, (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6), Budget(0.8))
    assert space.steps == pytest.approx((1 / 3, 1 / 3, 0.1, 0.1))
    first = space.nearest(dict.fromkeys((site.name for site in sites), 0.2))
    shares = space.shares(space.departing(first, "matrix", (-1.0, 1.0, 0.0, 0.0)))
    assert shares[0] < space.shares(first)[0] < shares[1]
    assert space.met(space.departing(first, "matrix", (-1.0, 1.0, 0.0, 0.0)))
