"""The loss by channels as wholes."""

import pytest
import torch

from prunus.calibration.gates import gate_gradients
from prunus.errors import CalibrationError
from prunus.silence import gated

from ..tiny import channels_of, tiny_model

TOKENS = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_factor_of_a_channel_changes_the_loss_as_its_gradient_says(family: str) -> None:
    model = tiny_model(family).double()
    sites = channels_of(model)

    def loss(row: int) -> torch.Tensor:
        logits = model(input_ids=TOKENS[row : row + 1]).logits[0, :-1]  # a loss of transformers' own is in float32
        return torch.nn.functional.cross_entropy(logits, TOKENS[row, 1:])

    found = gate_gradients(model, sites, [lambda: loss(0), lambda: loss(1)])
    for site in sites[:2]:
        assert found[site.name].shape == (2, site.count)
        for row in range(2):
            values = []
            for step in (1e-2, -1e-2):
                gate = torch.ones(site.count, dtype=torch.float64)
                gate[1] += step
                with torch.no_grad(), gated(model, {site.consumer: gate.repeat_interleave(site.width)}):
                    values.append(float(loss(row)))
            assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(found[site.name][row, 1]), rel=1e-2, abs=2e-4)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_no_number_is_refused_and_the_model_left_as_it_was() -> None:
    model = tiny_model()
    with pytest.raises(CalibrationError, match="the loss of batch 0 is nan"):
        gate_gradients(model, channels_of(model), [lambda: model(input_ids=TOKENS).logits.sum() * float("nan")])
    assert all(parameter.requires_grad for parameter in model.parameters())
