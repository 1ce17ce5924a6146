"""The laws that every allocator obeys, and `fit`, which meets the budget for them."""

from typing import Any

import pytest
import torch

from prunus.allocation import fit, reach
from prunus.budget import Allocation, Budget
from prunus.errors import RecipeError
from prunus.granularity import NM, Columns, Granularity, Tile, Unstructured
from prunus.lookup import find, names
from prunus.sites import ChannelSite, LinearSite, Site, SublayerSite
from prunus.stats import LossStats

from ..problems import generator, inputs, sparsity_of, stats_of

# `file` states shares and meets no budget of its own (its laws are in tests/unit/test_allocators.py); others share out branches or
# channels alone.
every_allocator = pytest.mark.parametrize("allocator", [
    pytest.param(find("allocation", name)(), id=name) for name in names("allocation")
    if name != "file" and "linear" in getattr(find("allocation", name)(), "kinds", ("linear",))])
every_shape = pytest.mark.parametrize("granularity", [Unstructured("row"), Unstructured("matrix"), NM(2, 4), Tile(2, 4),
                                                      Columns(4)], ids=str)
SIZES = ((8, 24), (36, 12), (12, 60), (4, 24), (20, 36))


def linear_sites(sizes: tuple[tuple[int, int], ...] = SIZES) -> tuple[LinearSite, ...]:
    return tuple(LinearSite(f"layers.{index}.a", index, size, f"layers.{index}.input") for index, size in enumerate(sizes))


def allocate(allocator: Any, sites: tuple[LinearSite, ...], budget: Budget, granularity: Granularity) -> Allocation:
    measured = {}
    for site in sites:
        out, width = site.shape
        seed = 0 if len({site.shape for site in sites}) == 1 else site.block
        weight = torch.randn(out, width, generator=generator(seed))
        loss = LossStats(1.0 + seed, 3.0 - 0.5 * seed, 0.1 * seed) if allocator.loss_needs else None
        measured[site.name] = allocator.measure(site, weight, stats_of(inputs(seed, width), allocator.needs), loss)
    return allocator.allocate(sites, measured, budget, granularity)


@every_allocator
@every_shape
@pytest.mark.parametrize("asked", [0.13, 0.5, 0.77])
def test_the_budget_is_met_after_rounding_to_what_can_be_reached(allocator: Any, granularity: Granularity, asked: float) -> None:
    sites, budget = linear_sites(), Budget(1 - sparsity_of(granularity, asked))
    allocation = allocate(allocator, sites, budget, granularity)
    reached = {site.name: reach(site, allocation[site.name], granularity) for site in sites}
    assert set(allocation) == {site.name for site in sites}
    assert budget.remaining(sites, reached) <= budget.limit + 1e-9
    assert all(0 <= sparsity <= 1 for sparsity in allocation.values())


@every_allocator
def test_the_order_of_the_sites_does_not_matter(allocator: Any) -> None:
    sites = linear_sites()
    forward = allocate(allocator, sites, Budget(0.4), Unstructured("row"))
    backward = allocate(allocator, sites[::-1], Budget(0.4), Unstructured("row"))
    assert dict(forward) == dict(backward)


@every_allocator
def test_identical_sites_give_identical_shares(allocator: Any) -> None:
    allocation = allocate(allocator, linear_sites(((8, 24),) * 4), Budget(0.4), Unstructured("row"))
    assert len(set(allocation.values())) == 1


@every_allocator
def test_nothing_is_taken_when_all_may_remain(allocator: Any) -> None:
    assert set(allocate(allocator, linear_sites(), Budget(1.0), Unstructured()).values()) == {0.0}


def test_fit_meets_the_budget_with_the_smallest_level_that_does() -> None:
    """Preferences as unequal as OWL's; one level lower, by less than one row's weight, must miss the budget."""
    sites, granularity = linear_sites(), Unstructured("matrix")

    def preference(site: Site, level: float) -> float:
        return level - 0.08 + 0.04 * site.block

    budget = Budget(0.5)
    allocation = fit(preference, sites, budget, granularity)
    reached = {site.name: reach(site, allocation[site.name], granularity) for site in sites}
    total = sum(site.size for site in sites)
    assert budget.limit - 5 / total <= budget.remaining(sites, reached) <= budget.limit  # one weight per site at most


def test_fit_holds_shares_inside_zero_and_one() -> None:
    sites = linear_sites()
    allocation = fit(lambda site, level: level + site.block - 2, sites, Budget(0.5), Unstructured("matrix"))
    assert allocation["layers.0.a"] == 0
    assert allocation["layers.4.a"] == 1


def test_fit_refuses_a_budget_that_no_level_meets() -> None:
    with pytest.raises(RecipeError, match=r"budget 0\.1: cannot be met by 5 sites at granularity unstructured"):
        fit(lambda site, level: min(level, 0.5), linear_sites(), Budget(0.1), Unstructured())


def test_reach_counts_whole_weights_whole_channels_and_whole_branches() -> None:
    linear = LinearSite("a", 0, (3, 10), "a.input")
    channel = ChannelSite("m.channels", 0, 7, "down", 1, (), 100)
    branch = SublayerSite("m", 0, 100, "down")
    assert reach(linear, 0.41, Unstructured("row")) == 0.5
    assert reach(linear, 0.41, Unstructured("matrix")) == pytest.approx(13 / 30)
    assert reach(channel, 0.41, Unstructured()) == pytest.approx(3 / 7)
    assert reach(branch, 0.49, Unstructured()) == 0
    assert reach(branch, 0.5, Unstructured()) == 1
