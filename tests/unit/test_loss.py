"""How the loss depends on a matrix, against automatic differentiation written out."""

import math
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.calibration.loss import loss_stats
from prunus.errors import CalibrationError
from prunus.sites import LinearSite
from prunus.stats import LossNeeds

from ..problems import generator
from ..tiny import CAUSAL, tiny_model

TOKENS = torch.randint(0, 256, (3, 12), generator=generator(0))


def sites_of(model: Any) -> list[LinearSite]:
    return [site for site in describe(model).sites("linear") if isinstance(site, LinearSite)]


def loss_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, labels=tokens).loss  # the mean over predicted tokens


@pytest.mark.parametrize("family", CAUSAL)
def test_squared_gradients_times_squared_outputs_token_by_token(family: str) -> None:
    model = tiny_model(family)
    found = loss_stats(model, describe(model), sites_of(model), TOKENS, LossNeeds())
    name = sites_of(model)[-1].name
    module, seen = model.get_submodule(name), []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append(output) or output.retain_grad())
    (loss_of(model, TOKENS) * TOKENS[:, 1:].numel()).backward()  # the sum over predicted tokens
    handle.remove()
    (output,) = seen
    expected = (output.grad.square().sum(-1) * output.detach().square().sum(-1)).mean()
    assert found[name].output == pytest.approx(float(expected), rel=1e-3)
    assert found[name].trace is None


def test_the_stream_is_that_of_the_block_s_output() -> None:
    model = tiny_model()
    found = loss_stats(model, describe(model), sites_of(model), TOKENS, LossNeeds())
    last = [site.name for site in sites_of(model) if site.block == 1]
    seen: list[Any] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, inputs: inputs[0].retain_grad() or seen.append(inputs[0]))
    (loss_of(model, TOKENS) * TOKENS[:, 1:].numel()).backward()
    handle.remove()
    expected = float((seen[0].grad.square().sum(-1) * seen[0].detach().square().sum(-1)).mean())
    assert [found[name].stream for name in last] == pytest.approx([expected] * len(last), rel=1e-3)


def test_traces_are_those_of_the_exact_hessian() -> None:
    model = tiny_model(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1, vocab_size=260)
    site = sites_of(model)[1]  # 4 x 8
    parameter = model.get_submodule(site.name).weight
    rows = TOKENS[:1].repeat(400, 1)  # one text under many probes, so that the estimate is close
    found = loss_stats(model, describe(model), [site], rows, LossNeeds(curvature=True, sequences=400))

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {f"{site.name}.weight": weight}, (), {"input_ids": TOKENS[:1], "labels": TOKENS[:1]}).loss

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(loss, parameter.detach()).view(parameter.numel(), -1)
    spread = float((hessian - hessian.diag().diag()).norm()) * math.sqrt(2 / 400)
    assert found[site.name].trace == pytest.approx(float(hessian.trace()), abs=4 * spread)
    assert spread < abs(float(hessian.trace()))  # else the test says nothing


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model()
    model.get_submodule(sites_of(model)[0].name).weight.requires_grad_(False)
    model.train()
    asked = [parameter.requires_grad for parameter in model.parameters()]
    loss_stats(model, describe(model), sites_of(model), TOKENS, LossNeeds(curvature=True))
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_gradient_that_is_no_number_is_refused_by_name() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(CalibrationError, match=r"^model\.layers\.0\.self_attn\.q_proj: the gradient of the loss is not finite"):
        loss_stats(model, describe(model), sites_of(model), TOKENS, LossNeeds())
