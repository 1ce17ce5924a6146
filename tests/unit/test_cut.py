"""Cutting changes nothing but the size: whatever was masked gives the same answers as what is gone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.errors import RecipeError
from prunus.sites import ChannelSite, SublayerSite
from prunus.surgery.cut import cut, skip
from prunus.surgery.write import clear_rows, module_layout

from ..tiny import CAUSAL, FAMILIES, tiny_model

every_family = pytest.mark.parametrize("family", FAMILIES)
every_decoder = pytest.mark.parametrize("family", CAUSAL)
TOKENS = torch.arange(2 * 24).view(2, 24) * 5 % 256


@torch.no_grad()
def answer(model: Any, tokens: Tensor = TOKENS, **more: Any) -> Tensor:
    cached = {"use_cache": False} if model.can_generate() else {}
    return model(input_ids=tokens, **cached, **more).logits


@torch.no_grad()
def mask_channels(model: Any, every: int = 3) -> dict[str, Tensor]:
    """Zero every third channel (of attention, every second head) in a model; gives what is kept."""
    kept = {}
    for index, site in enumerate(describe(model).sites("channel")):
        assert isinstance(site, ChannelSite)
        step = min(every + index % 2, site.count)
        mask = torch.arange(site.count) % step != 0
        consumer = model.get_submodule(site.consumer)
        module_layout(consumer, consumer.weight)[:, ~mask.repeat_interleave(site.width)] = 0
        clear_rows(model, site.producers, (~mask).nonzero().flatten())
        kept[site.name] = mask
    return kept


@torch.no_grad()
def mask_branches(model: Any, names: list[str]) -> None:
    for site in describe(model).sites("sublayer"):
        if site.name in names:
            assert isinstance(site, SublayerSite)
            for parameter in model.get_submodule(site.output).parameters():
                parameter.zero_()


def branches(model: Any) -> list[str]:
    return [site.name for site in describe(model).sites("sublayer")]


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@every_family
def test_a_model_without_channels_answers_as_the_one_with_zeros(family: str) -> None:
    model = tiny_model(family, num_hidden_layers=3) if family not in ("gpt2", "distilbert") else tiny_model(family)
    kept = mask_channels(model)
    expected, before, anatomy = answer(model), parameters(model), describe(model)
    left = cut(model, anatomy, kept)
    assert float((answer(model) - expected).abs().max()) <= 1e-5
    gone = sum((~kept[site.name]).sum() * site.size / site.count for site in anatomy.sites("channel") if isinstance(site, ChannelSite))
    assert before - parameters(model) >= int(gone)
    assert [site.count for site in left.sites("channel") if isinstance(site, ChannelSite)] == [int(mask.sum()) for mask in kept.values()]
    assert left == describe(model)


@every_family
def test_a_cut_can_be_cut_again(family: str) -> None:
    """Fused matrices too: where their parts begin has moved."""
    model = tiny_model(family)
    cut(model, describe(model), mask_channels(model))
    again = mask_channels(model, every=2)
    expected = answer(model)
    cut(model, describe(model), {name: mask for name, mask in again.items() if mask.any()})
    assert float((answer(model) - expected).abs().max()) <= 1e-5


@every_family
@pytest.mark.parametrize("which", [[0], [1], [2], [3], [0, 3], [1, 2], [2, 3], [0, 1], [1, 3], [0, 1, 3]])
def test_a_model_without_branches_answers_as_the_one_whose_branches_give_nothing(family: str, which: list[int]) -> None:
    model, names = tiny_model(family), []
    names = [branches(model)[index] for index in which]
    mask_branches(model, names)
    expected, before = answer(model), parameters(model)
    left = skip(model, describe(model), names)
    assert float((answer(model) - expected).abs().max()) <= 1e-5
    assert parameters(model) < before
    assert len(left.sites("sublayer")) == 4 - len(which)
    assert left == describe(model)


@torch.no_grad()
def stepwise(model: Any, tokens: Tensor) -> Tensor:
    """Logits of one token at a time, with keys and values kept."""
    found, cache = [], None
    for position in range(tokens.shape[1]):
        output = model(input_ids=tokens[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, 1)


@every_decoder
@pytest.mark.parametrize("which", [[0], [2], [4], [0, 2], [0, 1], [0, 2, 5], [0, 4]])
def test_keys_and_values_are_kept_in_the_right_places(family: str, which: list[int]) -> None:
    """With and without the first attention, and of models that mix windows with full attention."""
    model = tiny_model(family, **({"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}))
    skip(model, describe(model), [branches(model)[index] for index in which])
    assert float((stepwise(model, TOKENS) - answer(model)).abs().max()) <= 1e-4


@every_decoder
def test_padded_batches_generate_what_single_prompts_do(family: str) -> None:
    model = tiny_model(family)
    kept = mask_channels(model)
    cut(model, describe(model), kept)
    skip(model, describe(model), branches(model)[:1])
    prompts = [torch.arange(3, 12) * 7 % 250, torch.arange(5, 10) * 11 % 250]
    padded = torch.full((2, 9), 257)
    mask = torch.zeros(2, 9, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        padded[row, 9 - len(prompt) :] = prompt
        mask[row, 9 - len(prompt) :] = 1
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 257}
    together = model.generate(padded, attention_mask=mask, **settings)[:, 9:]
    for row, prompt in enumerate(prompts):
        alone = model.generate(prompt[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.long), **settings)
        assert alone[0, len(prompt) :].tolist() == together[row].tolist()


def test_what_cannot_be_left_is_refused_and_nothing_is_changed() -> None:
    model = tiny_model()
    anatomy, expected = describe(model), answer(model)
    with pytest.raises(RecipeError, match=r"layers\.0\.mlp\.channels: would keep none of its 48 channels"):
        cut(model, anatomy, {"model.layers.0.mlp.channels": torch.zeros(48, dtype=torch.bool)})
    with pytest.raises(RecipeError, match="no attention would be left"):
        skip(model, anatomy, [name for name in branches(model) if "attn" in name])
    with pytest.raises(RecipeError, match="no branch would be left"):
        skip(tiny_model("bert"), describe(tiny_model("bert")), branches(tiny_model("bert")))
    assert torch.equal(answer(model), expected)


def test_a_block_that_scales_by_its_depth_is_not_moved() -> None:
    model = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RecipeError, match="scales attention by its depth"):
        skip(model, describe(model), branches(model)[:2])
