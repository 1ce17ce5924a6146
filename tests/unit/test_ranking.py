"""Channels of all sites in one ranking: the laws of allocators, on channel sites, and the order by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from prunus.allocation import reach
from prunus.allocation.ranking import Ranking
from prunus.budget import Allocation, Budget
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.obs import OBS
from prunus.criteria.taylor import Taylor
from prunus.criteria.wanda import Wanda
from prunus.errors import RecipeError
from prunus.granularity import Unstructured
from prunus.sites import ChannelSite
from prunus.stats import ChannelLoss

from ..problems import generator, inputs, stats_of

RANKINGS = [Ranking(), Ranking(Magnitude()), Ranking(Wanda()), Ranking(OBS()), Ranking(Taylor("fused")),
            Ranking(Taylor("second"), standardise=False), Ranking(standardise=False)]
every_ranking = pytest.mark.parametrize("ranking", RANKINGS, ids=str)


def site(name: str, count: int, width: int = 1, size: int = 0, multiple: int = 1) -> ChannelSite:
    return ChannelSite(f"{name}.channels", 0, count, f"{name}.down", width, (), size or 40 * count * width, multiple=multiple)


SITES = (site("a", 40), site("b", 3, 8, 2000), site("c", 64), site("d", 40, size=9000))


def measure(ranking: Ranking, sites: Sequence[ChannelSite], alike: bool = False) -> dict[str, Any]:
    measured = {}
    for place, each in enumerate(sites):
        seed = 0 if alike else place
        width = each.count * each.width
        weight = torch.randn(10, width, generator=generator(seed)) * (1 + 10 * seed)
        vector = torch.randn(each.count, generator=generator(seed))
        measured[each.name] = ranking.measure(each, weight, stats_of(inputs(seed, width), ranking.needs),
                                              ChannelLoss(vector, 2 * vector.abs(), vector.square(), vector.abs()))
    return measured


def share(ranking: Ranking, sites: Sequence[ChannelSite], measured: Mapping[str, Any], limit: float) -> Allocation:
    return ranking.allocate(sites, measured, Budget(limit), Unstructured("matrix"))


@every_ranking
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("limit", [0.9, 0.7, 0.5])
def test_the_budget_is_met_in_whole_channels_with_nothing_to_spare(ranking: Ranking, limit: float, multiple: int) -> None:
    """The last step takes one channel, or one multiple of them; without it the budget is missed."""
    sites = tuple(site(each.branch, each.count, each.width, each.size, multiple if each.width == 1 else 1) for each in SITES)
    shares = share(ranking, sites, measure(ranking, sites), limit)
    reached = {each.name: reach(each, shares[each.name], Unstructured("matrix")) for each in sites}
    budget, total = Budget(limit), sum(each.size for each in sites)
    assert budget.met(sites, reached)
    largest = max(each.size / each.count * each.multiple for each in sites)
    assert budget.remaining(sites, reached) > limit - largest / total
    assert all(round(each.count * (1 - reached[each.name])) % each.multiple == 0 for each in sites if reached[each.name] > 0)


@every_ranking
def test_the_order_of_the_sites_does_not_matter(ranking: Ranking) -> None:
    measured = measure(ranking, SITES)
    assert dict(share(ranking, SITES, measured, 0.6)) == dict(share(ranking, SITES[::-1], measured, 0.6))


@every_ranking
def test_identical_sites_give_identical_shares_and_no_more_than_a_channel_too_much(ranking: Ranking) -> None:
    sites = tuple(site(name, 40) for name in "abcd")
    shares = share(ranking, sites, measure(ranking, sites, alike=True), 0.63)
    assert set(shares.values()) == {15 / 40}


def test_sites_whose_channels_are_all_alike_give_them_one_by_one() -> None:
    sites = tuple(site(name, 40) for name in "ab")
    measured = {each.name: Ranking(Magnitude()).measure(each, torch.ones(10, 40), stats_of(torch.ones(3, 40), "power"), None)
                for each in sites}
    assert set(share(Ranking(), sites, measured, 0.5).values()) == {0.5}


@every_ranking
def test_nothing_is_taken_when_all_may_remain(ranking: Ranking) -> None:
    assert set(share(ranking, SITES, measure(ranking, SITES), 1.0).values()) == {0.0}


@pytest.mark.parametrize("multiple", [1, 16])
def test_every_site_keeps_a_channel_whatever_the_ranking_says(multiple: int) -> None:
    sites = (site("a", 40, multiple=multiple), site("b", 40, multiple=multiple))
    measured = {"a.channels": [-9.0] * 40, "b.channels": [float(score) for score in range(40)]}
    shares = share(Ranking(), sites, measured, 0.5)
    stays = [round(40 * (1 - reach(each, shares[each.name], Unstructured()))) for each in sites]
    assert stays[0] == multiple
    assert sum(stays) <= 40
    with pytest.raises(RecipeError, match="cannot be met by 2 sites"):
        share(Ranking(), sites, measured, 0.02)


def test_scores_are_standardised_within_the_site_over_columns_and_averaged_over_a_channel() -> None:
    weight = torch.randn(10, 24, generator=generator(0))
    columns = weight.abs().sum(0).double()
    exact = ((columns - columns.mean()) / columns.std(correction=0)).view(3, 8).mean(1).sort().values
    found = Ranking(Magnitude()).measure(SITES[1], weight, stats_of(inputs(0), "power"), None)
    assert found == pytest.approx(exact.tolist(), abs=1e-5)
    louder = Ranking(Magnitude()).measure(SITES[1], 100 * weight, stats_of(inputs(0), "power"), None)
    assert louder == pytest.approx(found, abs=1e-5)


def test_not_standardised_a_channel_competes_with_its_saliency_per_weight() -> None:
    weight = torch.randn(10, 24, generator=generator(0))
    exact = weight.abs().sum(0).view(3, 8).sum(1).sort().values / (2000 / 3)
    found = Ranking(Magnitude(), standardise=False).measure(SITES[1], weight, stats_of(inputs(0), "power"), None)
    assert found == pytest.approx(exact.tolist(), rel=1e-5)


def test_the_least_of_all_go_and_count_for_the_weights_that_go_with_them() -> None:
    small, large = site("a", 4, size=40), site("b", 4, size=400)
    measured = {"a.channels": [-2.0, -1.0, 0.0, 3.0], "b.channels": [-1.5, -0.5, 1.0, 1.0]}
    assert share(Ranking(), (small, large), measured, 0.98) == {"a.channels": 0.25, "b.channels": 0.0}
    assert share(Ranking(), (small, large), measured, 0.97) == {"a.channels": 0.25, "b.channels": 0.25}
    assert share(Ranking(), (small, large), measured, 0.6) == {"a.channels": 0.5, "b.channels": 0.5}
