"""The head alone says what the model says."""

import pytest
import torch

from prunus.calibration.readout import logits_of

from ..tiny import CAUSAL, tiny_model


@pytest.mark.parametrize("family", CAUSAL)
def test_the_head_of_every_family_runs_alone_and_leaves_the_model_as_it_was(family: str) -> None:
    model, tokens = tiny_model(family), torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(input_ids=tokens, use_cache=False).logits
        found = logits_of(model, model.base_model(input_ids=tokens, use_cache=False)[0][:, 3:6])
        assert found is not None
        assert torch.equal(found, whole[:, 3:6])
        assert torch.equal(model(input_ids=tokens, use_cache=False).logits, whole)
