"""What sub-networks cost: seconds from measured branches, and what is counted."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.errors import LoadError, RecipeError, UnknownName
from prunus.search.latency import Latency
from prunus.search.objectives import Judge, check_objectives, flops
from prunus.search.subnetwork import Kept, Units
from prunus.traits import model_bytes

from ..tiny import tiny_classifier, tiny_model

TOKENS = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(0))


def units_of(model: Any) -> Units:
    return Units(describe(model), {})


def first(units: Units, share: float) -> Kept:
    return {site.name: units.first(site, round(share * site.count)) for site in units.sites}


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bert"])
def test_seconds_are_measured_at_some_widths_and_the_model_is_left_alone(family: str) -> None:
    model = tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    units = units_of(model)
    found = Latency.measured(model, units, TOKENS, points=3)
    assert found.batch == (2, 12)
    for site in units.sites:
        counts, seconds = zip(*found.branches[site.name], strict=True)
        assert (counts[0], counts[-1]) == (0, site.count)
        assert list(seconds) == sorted(seconds)
        assert seconds[0] == 0
    assert found.branches[units.sites[0].name] == found.branches[units.sites[2].name]  # alike blocks are measured once
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_seconds_add_up_and_are_interpolated() -> None:
    units = units_of(tiny_model(num_hidden_layers=1))
    attention, mlp = (site.name for site in units.sites)
    found = Latency(1.0, {attention: ((0, 0.0), (1, 2.0), (2, 3.0)), mlp: ((0, 0.0), (24, 1.0), (48, 5.0))}, (1, 8), "cpu")
    assert found.dense == 9
    kept = {attention: units.first(units.sites[0], 1), mlp: units.first(units.sites[1], 36)}
    assert found.seconds(kept) == pytest.approx(1 + 2 + 3)
    assert found.seconds({name: mask & False for name, mask in kept.items()}) == 1


def test_seconds_are_kept_for_a_search_that_goes_on(tmp_path: Path) -> None:
    found = Latency(1.0, {"mlp": ((0, 0.0), (4, 0.25))}, (2, 8), "cpu")
    file = tmp_path / "run" / "latency.json"
    assert Latency.read(file, (2, 8), "cpu") is None
    found.write(file)
    assert Latency.read(file, (2, 8), "cpu") == found
    with pytest.raises(RecipeError, match=r"another search \(batches = \(2, 8\), here \(1, 8\)"):
        Latency.read(file, (1, 8), "cpu")
    with pytest.raises(RecipeError, match="place = cpu, here cuda:0"):
        Latency.read(file, (2, 8), "cuda:0")
    file.write_text("{}")
    with pytest.raises(LoadError, match="is damaged"):
        Latency.read(file, (2, 8), "cpu")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_a_decoder_that_classifies_is_measured_like_any(family: str) -> None:
    """It keeps keys and values unless it is told not to."""
    model = tiny_classifier(family)
    found = Latency.measured(model, units_of(model), TOKENS, points=2)
    assert found.batch == (2, 12)
    assert found.dense > 0


def test_costs_are_those_of_the_extracted_model() -> None:
    model = tiny_model(num_hidden_layers=2)
    units = units_of(model)
    judge = Judge(model, units, ("loss", "params", "memory", "flops"), lambda kept, levels, resource: {"loss": 3.0 + resource}, 12)
    whole = judge(first(units, 1.0))
    assert whole == (3.0, 1.0, 1.0, 1.0)
    assert judge(first(units, 1.0), resource=2)[0] == 5
    half = first(units, 0.5)
    loss, params, memory, work = judge(half)
    small = copy.deepcopy(model)
    units.extract(small, half)
    weights = [sum(site.size for site in describe(each).sites("linear")) for each in (small, model)]
    assert loss == 3
    assert judge.told(half) == (None, params, memory, work)  # without a look
    assert params == pytest.approx(weights[0] / weights[1])
    assert memory == pytest.approx(model_bytes(small) / model_bytes(model))
    assert work == pytest.approx(0.5)
    plain = sum(2 * site.size for site in units.sites)
    assert flops(units, first(units, 1.0), 12) == plain + 2 * 4 * 12 * 32  # two attentions, 32 wide


def test_what_could_not_be_extracted_has_no_values() -> None:
    model = tiny_model()
    units = units_of(model)
    kept = {name: mask & ("mlp" in name) for name, mask in first(units, 1.0).items()}
    with pytest.raises(RecipeError, match="no attention would be left"):
        Judge(model, units, ("loss", "params"), lambda *_: {"loss": 0.0}, 12)(kept)


def test_objectives_are_known_and_two_at_least() -> None:
    assert check_objectives(["error", "params"]) == ("error", "params")
    with pytest.raises(UnknownName, match="Did you mean 'latency'"):
        check_objectives(["error", "latncy"])
    for names in (["error"], ["error", "error"]):
        with pytest.raises(RecipeError, match="at least two, none of them twice"):
            check_objectives(names)
