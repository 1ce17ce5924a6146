"""Every space of architectures, on every family: a sub-network that is worn computes what the extracted model does."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.errors import RecipeError
from prunus.lookup import find, names
from prunus.search.genome import Architectures
from prunus.search.subnetwork import Units
from prunus.silence import silenced

from ..genomes import thin_of
from ..tiny import FAMILIES, channels_of, tiny_model

TOKENS = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(0))
SPACES = names("search.spaces")
Make = Callable[..., Architectures]


@pytest.fixture
def genome(tmp_path: Path) -> Make:
    """`genome(space, model, …)`: with channels in an order of their own, so that a prefix is not the first ones."""
    def make(space: str, model: Any, **settings: Any) -> Architectures:
        order = {site.name: torch.randperm(site.count, generator=torch.Generator().manual_seed(1)) for site in channels_of(model)}
        asked = find("search.spaces", space)(**settings)
        thin = thin_of(model, asked, TOKENS, tmp_path) if space == "mixed" else None
        found: Architectures = asked.over(Units(describe(model), order, thin))
        return found

    return make


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


def draws(space: Architectures, count: int) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [space.smallest, space.largest, *(space.draw(rng) for _ in range(count))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("space", SPACES)
def test_worn_and_extracted_give_the_same(space: str, family: str, genome: Make) -> None:
    model = tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    found, looked, dense = genome(space, model), 0, sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    for candidate in draws(found, 6):
        kept = found.kept(candidate)
        with found.worn(model, candidate):
            worn = logits(model)
        small = copy.deepcopy(model)
        if not any(mask.any() for name, mask in kept.items() if "attn" in name or "attention" in name):
            continue  # refused: see below
        dense_values = found.units.clear(small, kept)
        if not any(found.levels(candidate).values()):  # what is cleared is dense
            with silenced(small, found.units.gone(kept)):
                assert torch.allclose(worn, logits(small), atol=1e-4), candidate
        assert all(torch.equal(value, before[name]) for name, value in dense_values.items())
        found.extract(small, candidate)
        assert torch.allclose(worn, logits(small), atol=1e-4), candidate
        matrices = [small.get_submodule(site.name).weight for site in describe(small).sites("linear")]
        assert sum(int(weight.count_nonzero()) for weight in matrices) / found.units.size == pytest.approx(found.remaining(candidate))
        assert (sum(int(parameter.count_nonzero()) for parameter in small.parameters()) < dense) == (candidate != found.largest)
        looked += 1
    assert looked > 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("space", SPACES)
def test_more_is_left_at_higher_values_from_the_smallest_to_the_dense_model(space: str, genome: Make) -> None:
    found = genome(space, tiny_model(num_hidden_layers=3))
    assert found.remaining(found.largest) == 1
    assert all(mask.all() for mask in found.kept(found.largest).values())
    assert 0 < found.remaining(found.smallest) < 0.4
    for candidate in draws(found, 4):
        assert all(0 <= value < size for value, size in zip(candidate, found.sizes, strict=True))
        for index, size in list(enumerate(found.sizes))[:8]:
            if candidate[index] + 1 < size:
                raised = (*candidate[:index], candidate[index] + 1, *candidate[index + 1 :])
                assert found.remaining(raised) >= found.remaining(candidate)
                for name, mask in found.kept(candidate).items():  # what a smaller one has, a larger one has too
                    assert not bool((mask & ~found.kept(raised)[name]).any())


@pytest.mark.parametrize("space", SPACES)
def test_the_nearest_to_a_sub_network_of_the_space_is_itself(space: str, genome: Make) -> None:
    for found in (genome(space, tiny_model(num_hidden_layers=3)), genome("medium", tiny_model(), steps=3)):
        for candidate in draws(found, 6):
            kept = found.kept(candidate)
            if found.nearest is not None:
                again = found.kept(found.nearest(kept))
                assert all(torch.equal(mask, again[name]) for name, mask in kept.items())


@pytest.mark.parametrize("space", SPACES)
def test_samples_are_the_seeds(space: str, genome: Make) -> None:
    found = genome(space, tiny_model(num_hidden_layers=4))
    first, again, other = ([found.draw(rng) for _ in range(8)] for rng in map(random.Random, (1, 1, 2)))
    assert first == again
    assert first != other


@pytest.mark.parametrize("space", ["layer", "sublayer", "large"])
def test_samples_have_any_number_of_parts_equally_often(space: str, genome: Make) -> None:
    found = genome(space, tiny_model(num_hidden_layers=4))
    rng = random.Random(0)
    shares = [sum(candidate) / len(candidate) for candidate in (found.draw(rng) for _ in range(400))]
    assert sum(share < 0.25 + 1e-9 for share in shares) > 60
    assert sum(share > 0.75 - 1e-9 for share in shares) > 60


def test_gradients_reach_the_model_through_what_stays_only(genome: Make) -> None:
    model = tiny_model()
    found = genome("medium", model)
    with found.worn(model, (1, 5, 0, 5)):
        model(input_ids=TOKENS).logits.sum().backward()
    mask = found.kept((1, 5, 0, 5))["model.layers.0.mlp.channels"]
    gradient = model.model.layers[0].mlp.down_proj.weight.grad
    assert bool((gradient[:, ~mask] == 0).all())
    assert bool((gradient[:, mask] != 0).any())
    assert model.model.layers[1].self_attn.o_proj.weight.grad is None


def test_few_steps_are_spread_evenly(genome: Make) -> None:
    found = genome("small", tiny_model(), steps=4)
    assert found.sizes == (2, 2, 4)
    assert [int(found.kept((1, 1, step))["model.layers.1.mlp.channels"].sum()) for step in range(4)] == [12, 24, 36, 48]
    assert genome("medium", tiny_model(), steps=4).sizes == (3, 5, 3, 5)
    with pytest.raises(RecipeError, match="steps = -1"):
        genome("small", tiny_model(), steps=-1)


def test_a_sub_network_without_any_attention_cannot_be_extracted(genome: Make) -> None:
    model = tiny_model()
    found = genome("sublayer", model)
    with pytest.raises(RecipeError, match="no attention would be left"):
        found.units.extract(model, found.kept((0, 1, 0, 1)))
