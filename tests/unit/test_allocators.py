"""What each allocator looks at, by hand."""

from typing import Any

import pytest
import torch

from prunus.allocation import Per, lean
from prunus.allocation.dlp import DLP
from prunus.allocation.erk import ERK
from prunus.allocation.owl import OWL
from prunus.allocation.reconstruction import Reconstruction
from prunus.budget import Budget
from prunus.errors import RecipeError
from prunus.granularity import Unstructured
from prunus.problem import LayerProblem
from prunus.sites import ChannelSite, LinearSite, SublayerSite
from prunus.solvers.mask import Mask

from ..problems import generator, inputs, stats_of

SHAPE = Unstructured("matrix")


def site(name: str, block: int = 0, shape: tuple[int, int] = (100, 100), branch: str = "") -> LinearSite:
    return LinearSite(name, block, shape, f"{name}.input", branch)


def test_owl_counts_weights_whose_saliency_is_many_times_the_mean() -> None:
    weight, stats = torch.ones(10, 10), stats_of(torch.eye(10), "power")
    weight[0, :3] = 100.0  # the mean saliency is (97 + 300) / 100 times that of the others
    assert OWL(threshold=5.0).measure(site("a"), weight, stats) == pytest.approx(0.03)
    assert OWL(threshold=50.0).measure(site("a"), weight, stats) == 0


def test_owl_takes_loud_inputs_for_outliers_as_it_takes_large_weights() -> None:
    x = torch.eye(10)
    x[4, 4] = 100.0
    assert OWL().measure(site("a"), torch.ones(7, 10), stats_of(x, "power")) == pytest.approx(0.1)


def test_dlp_measures_the_median_saliency_and_takes_more_where_it_is_large() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0]])
    assert DLP().measure(site("a"), weight, stats_of(torch.ones(6, 5), "power")) == pytest.approx(3.0)
    allocation = DLP(spread=0.1).allocate([site("a", 0), site("b", 1)], {"a": 1.0, "b": 3.0}, Budget(0.5), SHAPE)
    assert allocation == pytest.approx({"a": 0.4, "b": 0.6}, abs=1e-4)


def test_erk_keeps_weights_in_proportion_to_inputs_plus_outputs() -> None:
    small, large = site("small", 0, (100, 100)), site("large", 1, (300, 300))
    allocation = ERK().allocate([small, large], {}, Budget(0.2), SHAPE)
    kept = {"small": 10_000 * (1 - allocation["small"]), "large": 90_000 * (1 - allocation["large"])}
    assert kept["large"] / kept["small"] == pytest.approx(3, rel=1e-3)
    assert sum(kept.values()) == pytest.approx(20_000, abs=2)


def test_erk_that_would_keep_more_than_all_of_a_matrix_takes_the_rest_from_the_others() -> None:
    allocation = ERK().allocate([site("small", 0, (10, 10)), site("large", 1, (300, 300))], {}, Budget(0.5), SHAPE)
    assert allocation["small"] == 0
    assert allocation["large"] == pytest.approx(90_100 / 90_000 * 0.5, abs=1e-4)


def test_erk_refuses_channels() -> None:
    with pytest.raises(RecipeError, match=r"^m\.channels: 'erk' is defined for matrices alone"):
        ERK().allocate([ChannelSite("m.channels", 0, 4, "m.down", 1, (), 100)], {}, Budget(0.5), SHAPE)


def test_reconstruction_measures_the_probe_s_relative_output_error() -> None:
    weight = torch.randn(12, 8, generator=generator(0))
    stats, probe = stats_of(inputs(0, 8), "gram"), Reconstruction(Mask(), probe=0.25)
    problem = LayerProblem(weight, stats, SHAPE, 0.25, "a")
    error = problem.error(Mask().solve(problem).weight)
    assert error is not None
    assert probe.measure(site("a", shape=(12, 8)), weight, stats) == pytest.approx(float(torch.tensor(error).log()), rel=1e-5)


def test_reconstruction_probes_whole_channels_of_a_channel_site() -> None:
    channels = ChannelSite("m.channels", 0, 4, "m.down", 2, (), 100)
    stats = stats_of(inputs(0, 8), "gram")
    weight = torch.randn(12, 8, generator=generator(0))
    assert Reconstruction(probe=0.5).measure(channels, weight, stats) > Reconstruction(probe=0.25).measure(channels, weight, stats)


@pytest.mark.parametrize(("per", "expected"), [
    ("matrix", [0.4, 0.5, 0.5, 0.6]), ("sublayer", [0.4333, 0.4333, 0.5, 0.6333]), ("block", [0.45, 0.45, 0.45, 0.65])])
def test_branches_and_blocks_share_the_mean_importance_of_their_sites(per: Per, expected: list[float]) -> None:
    sites = [site("a", 0, branch="attn"), site("b", 0, branch="attn"), site("c", 0, branch="mlp"), site("d", 1, branch="mlp1")]
    importance = {"a": 2.0, "b": 1.0, "c": 1.0, "d": 0.0}
    allocation = lean(importance, 0.1, per, sites, Budget(0.5), SHAPE)
    spread = allocation["d"] - allocation["a"]
    assert spread == pytest.approx(0.2, abs=1e-6)
    assert sum(allocation.values()) == pytest.approx(2.0, abs=1e-3)
    assert [allocation[name] for name in "abcd"] == pytest.approx(expected, abs=1e-3)


def test_large_sites_weigh_more_in_the_mean_of_their_block() -> None:
    sites = [site("a", 0, (10, 10)), site("b", 0, (30, 10)), site("c", 1), site("d", 2)]
    allocation = lean({"a": 4.0, "b": 0.0, "c": 1.0, "d": 0.0}, 0.1, "block", sites, Budget(0.5), SHAPE)
    assert allocation["a"] == allocation["b"] == allocation["c"] < allocation["d"]


def test_every_kind_of_site_names_its_branch() -> None:
    found: list[Any] = [site("m.up", branch="m"), ChannelSite("m.channels", 0, 4, "m.down", 1, (), 100),
                        SublayerSite("m", 0, 100, "m.down")]
    assert {each.branch for each in found} == {"m"}


@pytest.mark.parametrize("make", [
    lambda: OWL(spread=0.5), lambda: OWL(threshold=0.0), lambda: DLP(spread=-0.1), lambda: Reconstruction(probe=1.0),
])
def test_settings_that_cannot_be_meant_are_refused(make: Any) -> None:
    with pytest.raises(RecipeError, match="expected"):
        make()
