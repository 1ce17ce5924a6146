"""A sub-network computes what it keeps and no more, and its gradients are those of the masked model."""

import random
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prunus.anatomy import describe
from prunus.search.spaces.large import Large
from prunus.search.spaces.medium import Medium
from prunus.search.subnetwork import Units
from prunus.silence import gated, sliced

from ..tiny import FAMILIES, tiny_model

TOKENS = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(0))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=TOKENS).logits.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_masked_model(family: str) -> None:
    model = tiny_model(family).eval()
    genome = Large().over(Units(describe(model), {}))
    for seed in range(3):
        kept = genome.kept(genome.draw(random.Random(seed)))
        with genome.units.masked(model, kept):
            expected = gradients(model)
        with genome.units.worn(model, kept):
            found = gradients(model)
        for name, gradient in expected.items():
            assert torch.allclose(found.get(name, torch.zeros(())), gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "roberta"])
def test_half_a_branch_is_half_its_work(family: str) -> None:
    model = tiny_model(family).eval()
    genome = Medium(steps=2).over(Units(describe(model), {}))

    def work(candidate: tuple[int, ...]) -> int:
        with FlopCounterMode(display=False) as counted, torch.no_grad(), genome.worn(model, candidate):
            model(input_ids=TOKENS)
        return int(counted.get_total_flops())

    least, half, whole = (work((size,) * len(genome.sizes)) for size in (0, 1, 2))
    assert half - least == pytest.approx((whole - least) / 2, rel=0.02)


def test_factors_on_columns_that_stay_work_in_what_is_sliced() -> None:
    model = tiny_model().eval()
    site = next(site for site in describe(model).sites("channel") if "mlp" in site.name)
    mask, factor = torch.arange(site.count) % 3 > 0, torch.linspace(0.5, 2, site.count)
    with torch.no_grad():
        with gated(model, {site.consumer: factor * mask}):
            expected = model(input_ids=TOKENS).logits
        for _ in range(2):
            with gated(model, {site.consumer: factor}), sliced(model, {site: mask}):
                assert torch.allclose(model(input_ids=TOKENS).logits, expected, atol=1e-5)


def test_a_matrix_that_is_not_a_plain_one_is_masked() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(given)

    model = tiny_model().eval()
    genome = Medium(steps=2).over(Units(describe(model), {}))
    model.model.layers[0].mlp.up_proj.__class__ = Doubled
    kept = genome.kept((1,) * len(genome.sizes))
    with torch.no_grad(), genome.units.masked(model, kept):
        expected = model(input_ids=TOKENS).logits
    with torch.no_grad(), genome.units.worn(model, kept):
        assert torch.allclose(model(input_ids=TOKENS).logits, expected, atol=1e-5)


def test_the_model_is_itself_again_whatever_happens() -> None:
    model = tiny_model("gpt2").eval()
    genome = Medium(steps=2).over(Units(describe(model), {}))
    before = [(name, sorted(module.__dict__), getattr(module, "num_heads", None)) for name, module in model.named_modules()]
    with pytest.raises(ZeroDivisionError), genome.worn(model, (1,) * len(genome.sizes)):
        raise ZeroDivisionError
    assert [(name, sorted(module.__dict__), getattr(module, "num_heads", None)) for name, module in model.named_modules()] == before
