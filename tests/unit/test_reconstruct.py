"""What is kept of a block is trained towards the dense block, and never made worse."""

import copy
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.calibration.placement import Placement
from prunus.errors import RecipeError
from prunus.recovery import Recovery
from prunus.recovery.patch import Patch
from prunus.recovery.reconstruct import Reconstruct
from prunus.silence import silenced
from prunus.sites import ChannelSite
from prunus.surgery.write import clear_rows

from ..tiny import branches_of, tiny_model

TOKENS = torch.randint(0, 256, (96, 32), generator=torch.Generator().manual_seed(0))
OTHERS = torch.randint(0, 256, (16, 32), generator=torch.Generator().manual_seed(1))


def narrowed(family: str = "llama", **changes: Any) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model, a copy of which a third of every MLP's channels are zero, and the parameters that were changed for it."""
    model = tiny_model(family, **changes)
    cut = copy.deepcopy(model)
    for site in describe(cut).sites("channel"):
        assert isinstance(site, ChannelSite)
        if site.count > 8:
            clear_rows(cut, site.producers, torch.arange(0, site.count, 3))
    before = dict(model.named_parameters())
    changed = {name for name, value in cut.named_parameters() if not torch.equal(value, before[name])}
    return model, cut, {name: before[name].detach().clone() for name in changed}


def repaired(cut: Any, recovery: Recovery, dense: dict[str, torch.Tensor], gone: tuple[int, ...] = ()) -> Any:
    model = copy.deepcopy(cut)
    recovery.recover(model, describe(model), [branches_of(model)[index] for index in gone], dense, TOKENS, Placement(), 8)
    return model


@torch.no_grad()
def distance(model: Any, other: Any, gone: tuple[int, ...] = ()) -> float:
    """Of the logits on other text, as a share of the dense model's own."""
    dense = model(input_ids=OTHERS).logits
    with silenced(other, [branches_of(other)[index] for index in gone]):
        return float((other(input_ids=OTHERS).logits - dense).norm() / dense.norm())


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "opt", "gpt2"])
def test_a_trained_block_is_nearer_to_the_dense_one_than_a_patched_one(family: str) -> None:
    model, cut, dense = narrowed(family)
    patched, trained = repaired(cut, Patch(), dense), repaired(cut, Reconstruct(epochs=8, rate=3e-3), dense)
    assert distance(model, trained) < 0.98 * distance(model, patched) < distance(model, cut)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "bert"])
def test_families_that_norm_what_is_added_are_trained_without_the_least_squares(family: str) -> None:
    model, cut, dense = narrowed(family)
    with pytest.raises(RecipeError, match="reconstruct,first=false"):
        Reconstruct().check(model, describe(model), TOKENS, Placement(), 8)
    recovery = Reconstruct(epochs=8, rate=3e-3, first=False)
    recovery.check(model, describe(model), TOKENS, Placement(), 8)
    assert distance(model, repaired(cut, recovery, dense)) < distance(model, cut)


def test_branches_that_go_are_made_up_for() -> None:
    model = tiny_model(num_hidden_layers=4)
    patched, trained = (repaired(model, recovery, {}, gone=(2, 5)) for recovery in (Patch(), Reconstruct(epochs=8, rate=3e-3)))
    assert distance(model, trained, (2, 5)) < distance(model, patched, (2, 5))
    assert trained.state_dict().keys() == model.state_dict().keys()


def test_zeros_stay_and_dtypes_and_what_asks_for_a_gradient_too() -> None:
    _, cut, dense = narrowed(dtype=torch.bfloat16)
    cut.model.layers[0].mlp.down_proj.weight.requires_grad_(False)
    trained = repaired(cut, Reconstruct(epochs=2, rate=1e-3), dense)
    for (name, before), after in zip(cut.named_parameters(), trained.parameters(), strict=True):
        assert not bool(after[before == 0].any()), name
        assert (after.dtype, after.requires_grad, after.grad) == (torch.bfloat16, before.requires_grad, None), name


def test_training_that_diverges_is_taken_back() -> None:
    _, cut, dense = narrowed()
    kept, wild = repaired(cut, Patch(0.3), dense), repaired(cut, Reconstruct(epochs=2, rate=1e3), dense)
    for (name, expected), found in zip(kept.named_parameters(), wild.parameters(), strict=True):
        assert torch.allclose(expected, found, atol=1e-6), name


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    _, cut, dense = narrowed()
    first, again, other = (repaired(cut, Reconstruct(epochs=2, seed=seed), dense).model.layers[1].mlp.up_proj.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_short_sequences_are_one_to_train_on_and_one_to_measure_on() -> None:
    _, cut, dense = narrowed()
    trained = copy.deepcopy(cut)
    Reconstruct(epochs=1, rate=1e-4).recover(trained, describe(trained), (), dense, TOKENS[:2], Placement(), 32)
    assert all(bool(parameter.isfinite().all()) for parameter in trained.parameters())


def test_a_single_sequence_and_numbers_out_of_range_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(RecipeError, match="1 calibration sequence"):
        Reconstruct().check(model, describe(model), TOKENS[:1], Placement(), 1)
    for settings in ({"epochs": 0}, {"rate": 0.0}, {"damping": 0.0}):
        with pytest.raises(RecipeError, match=next(iter(settings))):
            Reconstruct(**settings)
