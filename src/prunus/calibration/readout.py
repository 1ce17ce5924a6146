"""The logits of some positions: the model's own head, with the output of its body already known."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from .blocks import replaced

__all__ = ["LOGITS", "logits_of"]

LOGITS = 2**22  # elements of the largest tensor of logits: 16 MiB in float32


def logits_of(model: Any, hidden: Float[Tensor, "rows positions width"]) -> Float[Tensor, "rows positions words"] | None:
    """What the model's forward pass makes of the body's output; None of a family whose head does not ask the body in the usual way."""
    asked: list[bool] = []

    def known(*_: Any, **__: Any) -> Any:
        asked.append(True)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)

    tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)  # nobody reads them
    with replaced(model.base_model, known):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits if asked else None
