"""What each allocator looks at, by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.allocation import Per, lean, pooled
from prunus.allocation.absorption import Absorption
from prunus.allocation.dlp import DLP
from prunus.allocation.erk import ERK
from prunus.allocation.file import File
from prunus.allocation.fisher import Fisher
from prunus.allocation.owl import OWL
from prunus.allocation.reconstruction import Reconstruction
from prunus.allocation.sensitivity import Sensitivity
from prunus.allocation.uniform import Uniform
from prunus.budget import Budget
from prunus.errors import RecipeError
from prunus.granularity import Unstructured
from prunus.problem import LayerProblem
from prunus.sites import ChannelSite, LinearSite, SublayerSite
from prunus.solvers.mask import Mask
from prunus.stats import LossStats

from ..problems import generator, inputs, stats_of

SHAPE = Unstructured("matrix")


def site(name: str, block: int = 0, shape: tuple[int, int] = (100, 100), branch: str = "") -> LinearSite:
    return LinearSite(name, block, shape, f"{name}.input", branch)


def test_owl_counts_weights_whose_saliency_is_many_times_the_mean() -> None:
    weight, stats = torch.ones(10, 10), stats_of(torch.eye(10), "power")
    weight[0, :3] = 100.0  # the mean saliency is (97 + 300) / 100 times that of the others
    assert OWL(threshold=5.0).measure(site("a"), weight, stats, None) == pytest.approx(0.03)
    assert OWL(threshold=50.0).measure(site("a"), weight, stats, None) == 0


def test_owl_takes_loud_inputs_for_outliers_as_it_takes_large_weights() -> None:
    x = torch.eye(10)
    x[4, 4] = 100.0
    assert OWL().measure(site("a"), torch.ones(7, 10), stats_of(x, "power"), None) == pytest.approx(0.1)


def test_dlp_measures_the_median_saliency_and_takes_more_where_it_is_large() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0]])
    assert DLP().measure(site("a"), weight, stats_of(torch.ones(6, 5), "power"), None) == pytest.approx(3.0)
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
    assert probe.measure(site("a", shape=(12, 8)), weight, stats, None) == pytest.approx(float(torch.tensor(error).log()), rel=1e-5)


def test_reconstruction_probes_whole_channels_of_a_channel_site() -> None:
    channels = ChannelSite("m.channels", 0, 4, "m.down", 2, (), 100)
    stats = stats_of(inputs(0, 8), "gram")
    weight = torch.randn(12, 8, generator=generator(0))
    half, quarter = (Reconstruction(probe=probe).measure(channels, weight, stats, None) for probe in (0.5, 0.25))
    assert half > quarter


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


def test_sensitivity_shares_lie_evenly_by_rank_of_the_trace_per_weight() -> None:
    sites = [site("a", 0), site("b", 1), site("c", 2)]
    traces = {"a": 7.0, "b": 900.0, "c": 3.0}
    weight, stats = torch.ones(100, 100), stats_of(torch.eye(2), "power")
    measured = {name: Sensitivity().measure(sites[0], weight, stats, LossStats(0.0, 0.0, trace)) for name, trace in traces.items()}
    assert measured["b"] == pytest.approx(0.09)
    allocation = Sensitivity(spread=0.2).allocate(sites, measured, Budget(0.5), SHAPE)
    assert allocation == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.7}, abs=1e-3)


def test_sensitivity_is_spread_around_a_budget_that_counts_weights() -> None:
    sites = [site("small", 0, (10, 10)), site("large", 1, (100, 100))]
    allocation = Sensitivity(spread=0.2).allocate(sites, {"small": 1.0, "large": 2.0}, Budget(0.5), SHAPE)
    assert allocation["small"] - allocation["large"] == pytest.approx(0.4, abs=1e-3)
    assert 100 * allocation["small"] + 10_000 * allocation["large"] == pytest.approx(5050, abs=2)


def test_fisher_gives_every_matrix_the_same_marginal_cost() -> None:
    sites = [site("a", 0), site("b", 1, (100, 200)), site("c", 2)]
    measured = {"a": (-5.0, 8.0), "b": (-3.0, 8.0), "c": (-4.5, 6.0)}
    allocation = Fisher(spread=0.49).allocate(sites, measured, Budget(0.5), SHAPE)
    price = {name: measured[name][1] * math.exp(measured[name][0] + measured[name][1] * allocation[name]) for name in measured}
    assert price["a"] == pytest.approx(price["b"] / 2, rel=1e-2) == pytest.approx(price["c"], rel=1e-2)
    assert allocation["a"] > allocation["b"]


def test_fisher_weighs_a_solver_s_error_by_the_gradient_at_the_output() -> None:
    weight, stats = torch.randn(12, 8, generator=generator(0)), stats_of(inputs(0, 8), "gram")
    quiet, loud = (Fisher(Mask()).measure(site("a", shape=(12, 8)), weight, stats, LossStats(5.0 * slope, 0.0)) for slope in (1.0, 100.0))
    assert loud[0] - quiet[0] == pytest.approx(math.log(100))
    assert loud[1] == quiet[1] > 0
    problem = LayerProblem(weight, stats, SHAPE, 0.5, "a")
    error = problem.error(Mask().solve(problem).weight)
    assert error is not None
    assert quiet[0] + 0.5 * quiet[1] == pytest.approx(math.log(error * 5.0 / 12), rel=1e-5)


def test_fisher_stays_within_its_spread() -> None:
    sites = [site("a", 0), site("b", 1)]
    allocation = Fisher(spread=0.05).allocate(sites, {"a": (0.0, 8.0), "b": (30.0, 8.0)}, Budget(0.3), SHAPE)
    assert allocation == pytest.approx({"a": 0.75, "b": 0.65}, abs=1e-3)


def test_absorption_takes_from_the_base_where_the_loss_feels_the_stream_most() -> None:
    sites = [site("a", 0), site("b", 1), site("c", 2)]
    weight, stats = torch.ones(100, 100), stats_of(torch.eye(2), "power")
    streams = {"a": math.exp(4), "b": math.exp(2), "c": math.exp(0)}
    absorption = Absorption(Uniform(), strength=0.1)
    measured = {name: absorption.measure(sites[0], weight, stats, LossStats(0.0, stream)) for name, stream in streams.items()}
    allocation = absorption.allocate(sites, measured, Budget(0.5), SHAPE)
    assert allocation == pytest.approx({"a": 0.4, "b": 0.5, "c": 0.6}, abs=1e-3)


def test_absorption_needs_what_its_base_needs() -> None:
    assert Absorption(Uniform()).needs == "nothing"
    assert Absorption(OWL()).needs == "power"
    assert Absorption(Sensitivity()).loss_needs.curvature


def test_pooled_preferences_are_means_weighted_by_size() -> None:
    sites = [site("a", 0, (100, 100)), site("b", 0, (300, 100)), site("c", 1)]
    wish = {"a": 0.1, "b": 0.5, "c": 0.9}
    shared = pooled(lambda item, level: wish[item.name], "block", sites)
    assert [shared(item, 0.0) for item in sites] == pytest.approx([0.4, 0.4, 0.9])


FILE_SITES = [site("a", 0), site("b", 1)]


@pytest.mark.parametrize("data", [{"a": 0.4, "b": 0.6, "other": 0.0}, [{"z": 0.1}, {"a": 0.4, "b": 0.6}]])
def test_a_file_s_shares_are_taken_as_they_are(tmp_path: Path, data: Any) -> None:
    (tmp_path / "shares.json").write_text(json.dumps(data))
    assert File(str(tmp_path / "shares.json")).allocate(FILE_SITES, {}, Budget(0.5), SHAPE) == {"a": 0.4, "b": 0.6}


@pytest.mark.parametrize(("text", "words"), [
    ('{"a": 0.4}', r"says nothing about b\. Is it of another model"),
    ("[]", "says nothing about a"),
    ('{"a": 0.4, "b": 1.5}', r"b = 1\.5: expected a sparsity in \[0, 1\]"),
    ('{"a": 0.4, "b": "0.5"}', "b = '0.5': expected a sparsity"),
    ('{"a": 0.4, "b": 0.5}', r"removes 0\.450000 of the weights, but the budget asks for 0\.5"),
    ("{", "not valid JSON"),
    ("[3]", "expected a table of sparsities by site"),
])
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "shares.json").write_text(text)
    with pytest.raises(RecipeError, match=words):
        File(str(tmp_path / "shares.json")).allocate(FILE_SITES, {}, Budget(0.5), SHAPE)


def test_a_file_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"^nowhere\.json: cannot be read"):
        File("nowhere.json").allocate(FILE_SITES, {}, Budget(0.5), SHAPE)
