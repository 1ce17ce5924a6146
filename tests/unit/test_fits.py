"""What reads channels, fitted to those that stay: the weights, sub-networks that have them, and what is kept on disk."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.errors import LoadError, RecipeError
from prunus.finetune import Training
from prunus.front import FrontSearch
from prunus.search.channels import ChannelSpace
from prunus.search.fitness import Fitness
from prunus.search.fits import Fits
from prunus.search.space import Query
from prunus.search.spaces.large import Large
from prunus.search.spaces.mixed import Mixed
from prunus.search.subnetwork import Units
from prunus.traits import module_layout

from ..genomes import fitted
from ..tiny import channels_of, tiny_model

TOKENS = torch.randint(3, 250, (8, 32), generator=torch.Generator().manual_seed(0))


def fits_of(model: Any, folder: Path, identity: str = "a") -> Fits:
    return Fits.build(folder, model, describe(model), channels_of(model), TOKENS, identity)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_weight_is_the_least_squares_fit_of_the_dense_models_inputs(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    fits, before = fits_of(model, tmp_path), {name: value.clone() for name, value in model.named_parameters()}
    for index, site in enumerate(channels_of(model)):
        mask, module = torch.arange(site.count) % 2 == index % 2, model.get_submodule(site.consumer)
        found = module_layout(module, fits.weight(module, site, mask))
        columns = mask.repeat_interleave(site.width)
        assert not found[:, ~columns].any()
        assert torch.allclose(found, fitted(model, site, columns, TOKENS), atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "bert"])
def test_a_sub_network_has_the_weights_that_are_extracted_and_the_model_its_own_afterwards(family: str, tmp_path: Path) -> None:
    model = tiny_model(family).eval()
    genome = Large().over(Units(describe(model), {}, fits=fits_of(model, tmp_path)))
    plain = Large().over(Units(describe(model), {}))
    candidate, before = genome.draw(random.Random(3)), {name: value.clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        dense = model(input_ids=TOKENS).logits
        with genome.worn(model, candidate):
            worn = model(input_ids=TOKENS).logits
            again = model(input_ids=TOKENS).logits
        with plain.worn(model, candidate):
            unfitted = model(input_ids=TOKENS).logits
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        assert torch.equal(worn, again)
        genome.extract(model, candidate)
        assert torch.allclose(model(input_ids=TOKENS).logits, worn, atol=1e-5)
    assert (worn - dense).norm() < (unfitted - dense).norm()


def test_the_service_values_what_is_fitted(tmp_path: Path) -> None:
    model = tiny_model().eval()
    units = Units(describe(model), {}, fits=fits_of(model, tmp_path))
    space, genome = ChannelSpace(units.sites, (), ()), Large().over(units)
    kept = genome.kept(genome.draw(random.Random(3)))
    goes = torch.cat([~kept[site.name] for site in units.sites]).double().numpy()
    service = Fitness(model, units.anatomy, space, None, TOKENS, fits=units.fits, top=260)
    with torch.no_grad():
        said = model(input_ids=TOKENS).logits.double().log_softmax(-1)
        with units.worn(model, kept):
            other = model(input_ids=TOKENS).logits.double().log_softmax(-1)
    expected = (said.exp() * (said - other)).sum(-1).mean()
    assert service([Query(space.candidate(goes))])[0].value == pytest.approx(float(expected), rel=1e-4)
    service.close()


def test_what_is_there_is_used_again_unless_it_is_of_something_else_or_damaged(tmp_path: Path) -> None:
    model = tiny_model()
    fits_of(model, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    times = [file.stat().st_mtime_ns for file in files]
    assert len(files) == len(channels_of(model))
    files[0].write_bytes(b"")
    with pytest.raises(LoadError, match="Search again, with --resume"):
        Fits.known(tmp_path, channels_of(model))
    fits_of(model, tmp_path)
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)] == [False] + [True] * (len(files) - 1)
    assert Fits.known(tmp_path, channels_of(model)) == Fits(tmp_path)
    fits_of(model, tmp_path, "b")
    assert not any(file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True))


@pytest.mark.parametrize(("settings", "reason"), [
    ({"training": Training()}, "trained by itself here"), ({"space": Mixed()}, "weights that a solver made"),
])
def test_weights_have_one_origin(settings: Any, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        FrontSearch(objectives=("divergence", "params"), refit=True, **settings)
