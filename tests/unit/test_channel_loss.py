"""How the loss depends on channels, against automatic differentiation written out; and the criterion that lives on it."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prunus.anatomy import describe
from prunus.calibration.loss import channel_loss
from prunus.criteria.taylor import Taylor
from prunus.errors import CalibrationError, RecipeError
from prunus.sites import ChannelSite, SublayerSite
from prunus.stats import ChannelLoss, LossNeeds
from prunus.surgery.write import module_layout

from ..problems import generator, stats_of
from ..tiny import CAUSAL, channels_of, tiny_model

TOKENS = torch.randint(0, 256, (3, 12), generator=generator(0))
NEEDS = LossNeeds(channels=("vector", "element", "second", "mixed"))


def loss_of(model: Any, tokens: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=tokens, labels=tokens).loss  # the mean over predicted tokens
    return loss


def weights_of(model: Any, site: ChannelSite, values: dict[str, Tensor], channel: int) -> Tensor:
    """The values of one channel, one by one: rows of its producers, columns of its consumer, found by index."""
    found = []
    for producer in site.producers:
        first = producer.offset + channel * producer.rows
        found.append(module_layout(model.get_submodule(producer.name), values[producer.name])[first : first + producer.rows].flatten())
    columns = module_layout(model.get_submodule(site.consumer), values[site.consumer])[:, channel * site.width : (channel + 1) * site.width]
    return torch.cat([*found, columns.flatten()])


def gradients_of(model: Any, names: set[str], tokens: Tensor) -> dict[str, Tensor]:
    ordered = sorted(names)
    with torch.enable_grad():
        found = torch.autograd.grad(loss_of(model, tokens), [model.get_submodule(name).weight for name in ordered])
    return dict(zip(ordered, found, strict=True))


@pytest.mark.parametrize("family", CAUSAL)
def test_all_sums_are_those_of_a_gradient_computed_apart(family: str) -> None:
    """Weight by weight, fused matrices and transposed ones too; every sequence's gradient apart for the squares."""
    model = tiny_model(family)
    found = channel_loss(model, describe(model), channels_of(model), TOKENS, NEEDS)
    for site in channels_of(model):
        names = {site.consumer, *(producer.name for producer in site.producers)}
        dense = {name: model.get_submodule(name).weight.detach() for name in names}
        slope = gradients_of(model, names, TOKENS)
        each = [gradients_of(model, names, row[None]) for row in TOKENS]
        squares = {name: torch.stack([own[name].square() for own in each]).mean(0) for name in names}
        loss = found[site.name]
        for channel in range(site.count):
            w, g, f = (weights_of(model, site, values, channel) for values in (dense, slope, squares))
            scale = float((w * g).abs().sum())
            assert float(loss.sums("vector")[channel]) == pytest.approx(float((w * g).sum()), abs=1e-4 * scale)
            assert float(loss.sums("element")[channel]) == pytest.approx(scale, rel=1e-3)
            assert float(loss.sums("second")[channel]) == pytest.approx(float((w**2 * f).sum()), rel=1e-3)
            assert float(loss.sums("mixed")[channel]) == pytest.approx(float((w * g - w**2 * f / 2).abs().sum()), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_the_vector_form_is_the_change_of_the_loss_when_a_channel_is_scaled(family: str) -> None:
    """By a finite difference, on both sides; norms compute in float32, so the step is not too small."""
    model = tiny_model(family)
    found = channel_loss(model, describe(model), channels_of(model), TOKENS, NEEDS)
    exact, step = copy.deepcopy(model).double(), 3e-3
    with torch.no_grad():
        for site in channels_of(model):
            slope = []
            for channel in range(min(site.count, 6)):
                losses = []
                for factor in (1 + step, 1 - step):
                    scaled = copy.deepcopy(exact)
                    for producer in site.producers:
                        module = scaled.get_submodule(producer.name)
                        first = producer.offset + channel * producer.rows
                        module_layout(module, module.weight)[first : first + producer.rows] *= factor
                    module = scaled.get_submodule(site.consumer)
                    module_layout(module, module.weight)[:, channel * site.width : (channel + 1) * site.width] *= factor
                    losses.append(float(cross_entropy(scaled(input_ids=TOKENS).logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())))
                slope.append((losses[0] - losses[1]) / (2 * step))
            largest = float(found[site.name].sums("element").max())
            assert found[site.name].sums("vector")[: len(slope)].tolist() == pytest.approx(slope, abs=2e-4 * largest)
            assert max(map(abs, slope)) > 1e-2 * largest  # else the test says nothing


def test_the_order_of_the_sequences_does_not_matter() -> None:
    model = tiny_model()
    one, other = (channel_loss(model, describe(model), channels_of(model), rows, NEEDS) for rows in (TOKENS, TOKENS.flip(0)))
    for name, loss in one.items():
        for key in ("vector", "element", "second", "mixed"):
            scale = float(loss.sums("element").max())
            assert torch.allclose(getattr(loss, key), getattr(other[name], key), rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("form", ["vector", "element", "second", "mixed", "fused"])
def test_query_key_and_value_all_count(form: Any, part: str) -> None:
    model = tiny_model()
    site = channels_of(model)[0]
    without = replace(site, producers=tuple(producer for producer in site.producers if not producer.name.endswith(part)))
    whole, less = (score(Taylor(form), channel_loss(model, describe(model), [one], TOKENS, NEEDS)[site.name], site)
                   for one in (site, without))
    assert float((whole - less).abs().max()) > 1e-3 * float(whole.max())


def score(taylor: Taylor, loss: ChannelLoss, site: ChannelSite) -> Tensor:
    """The saliency of every channel."""
    weight = torch.ones(5, site.count * site.width)
    return taylor.saliency(weight, stats_of(torch.ones(3, weight.shape[1]), "power"), loss).sum(0).view(site.count, -1).sum(1)


def test_the_saliency_of_a_channel_is_what_its_form_says() -> None:
    model = tiny_model()
    for site in channels_of(model):
        loss = channel_loss(model, describe(model), [site], TOKENS, NEEDS)[site.name]
        vector, element = score(Taylor("vector"), loss, site), score(Taylor("element"), loss, site)
        assert torch.allclose(vector, loss.sums("vector").abs(), rtol=1e-4)
        assert torch.allclose(element, loss.sums("element"), rtol=1e-4)
        assert torch.allclose(score(Taylor("second"), loss, site), loss.sums("second"), rtol=1e-4)
        assert torch.allclose(score(Taylor("mixed"), loss, site), loss.sums("mixed"), rtol=1e-4)
        assert (element >= vector * (1 - 1e-5)).all()
        fused, coarse, fine = score(Taylor("fused"), loss, site), vector / vector.mean(), element / element.mean()
        assert (fused >= torch.minimum(coarse, fine) - 1e-4).all()
        assert (fused <= torch.maximum(coarse, fine) + 1e-4).all()
        assert (fused >= (coarse + fine) / 2 - 1e-4).all()  # who sees more has more to say


def test_an_unread_site_is_worth_nothing_and_no_division_by_zero() -> None:
    nothing = ChannelLoss(torch.zeros(4), torch.zeros(4))
    assert torch.equal(Taylor("fused").saliency(torch.ones(3, 8), stats_of(torch.ones(2, 8)), nothing), torch.zeros(3, 8))


def test_the_channels_of_a_branch_are_the_outputs_of_its_matrices() -> None:
    model = tiny_model()
    sites = [site for site in describe(model).sites("sublayer") if isinstance(site, SublayerSite)]
    found = channel_loss(model, describe(model), sites, TOKENS, LossNeeds(channels=("vector", "element")))
    names = [f"{sites[1].name}.{part}" for part in ("gate_proj", "up_proj", "down_proj")]
    slopes = gradients_of(model, set(names), TOKENS)
    expected = [(model.get_submodule(name).weight * slopes[name]).detach().sum(1) for name in names]
    loss = found[sites[1].name]
    assert loss.sums("vector").tolist() == pytest.approx(torch.cat(expected).tolist(), abs=1e-5)
    assert loss.second is None
    assert len(loss.sums("element")) == 48 + 48 + 32


def test_only_so_many_sequences_are_looked_at() -> None:
    model = tiny_model()
    few = channel_loss(model, describe(model), channels_of(model), TOKENS, LossNeeds(sequences=1, channels=("vector", "element")))
    first = channel_loss(model, describe(model), channels_of(model), TOKENS[:1], LossNeeds(channels=("vector", "element")))
    assert all(torch.equal(few[name].sums("element"), first[name].sums("element")) for name in first)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.full_like(weight, 3.0)
    model.model.layers[0].mlp.down_proj.weight.requires_grad_(False)
    model.train()
    asked, dense = [parameter.requires_grad for parameter in model.parameters()], copy.deepcopy(model.state_dict())
    channel_loss(model, describe(model), channels_of(model), TOKENS, NEEDS)
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert [parameter.grad is None for parameter in model.parameters()].count(False) == 1
    assert (weight.grad == 3).all()
    assert model.training
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    loss_of(model, TOKENS).backward()  # no hook takes gradients away any more
    assert model.model.layers[1].mlp.up_proj.weight.grad is not None


def test_half_precision_gradients_are_added_up_in_single() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    found = channel_loss(model, describe(model), channels_of(model), TOKENS, NEEDS)
    exact = channel_loss(model.float(), describe(model), channels_of(model), TOKENS, NEEDS)
    for name, loss in found.items():
        assert loss.sums("element").dtype == torch.float32
        assert torch.allclose(loss.sums("element"), exact[name].sums("element"), rtol=0.1)


def test_a_gradient_that_is_no_number_is_refused_by_name() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(CalibrationError, match=r"^model\.layers\.0\.self_attn\.channels: the gradient of the loss is not finite"):
        channel_loss(model, describe(model), channels_of(model), TOKENS, NEEDS)


def test_taylor_without_the_loss_and_without_sequences_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"^inputs: the loss was not differentiated by channel"):
        Taylor().saliency(torch.ones(3, 4), stats_of(torch.ones(2, 4)))
    with pytest.raises(RecipeError, match="sequences = 0: expected at least one"):
        Taylor(sequences=0)
