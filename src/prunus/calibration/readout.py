"""The logits of some positions: the model's own head, with the output of its body already known."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from .blocks import replaced

__all__ = ["head_runs_alone", "logits_of", "positions_at_once", "window_logits"]

LOGITS = 2**22  # elements of the largest tensor of logits: 16 MiB in float32
_TOKENS = 2048  # per pass through the body


def window_logits(model: Any, table: Int[Tensor, "windows length"]) -> Iterator[tuple[int, int, Float[Tensor, "positions words"]]]:
    """Which window, from which position on, and the logits of some positions, until all but the last of every window are through.

    Several windows go through the body together; the head runs on slices of positions, as all logits at once may need gigabytes.
    The model computes where it is, without gradients, and should be in evaluation mode.
    """
    device = next(model.parameters()).device
    batch = max(1, _TOKENS // table.shape[1])
    step = positions_at_once(model)
    for first in range(0, len(table), batch):
        tokens = table[first : first + batch].to(device)
        with torch.no_grad():
            hidden = model.base_model(input_ids=tokens, use_cache=False)[0]
        for row in range(len(tokens)):
            for start in range(0, table.shape[1] - 1, step):
                part = slice(start, min(start + step, table.shape[1] - 1))
                with torch.no_grad():
                    logits = logits_of(model, hidden[row : row + 1, part])
                    if logits is None:
                        logits = model(input_ids=tokens[row : row + 1], use_cache=False).logits[:, part]
                yield first + row, start, logits[0]


def positions_at_once(model: Any, rows: int = 1) -> int:
    """Of how many positions of so many rows the logits are in memory together."""
    return max(1, LOGITS // (rows * int(model.config.get_text_config().vocab_size)))


def head_runs_alone(model: Any) -> bool:
    """Whether `logits_of` gives any."""
    words = model.get_input_embeddings().weight
    return logits_of(model, words.new_zeros(1, 1, words.shape[1])) is not None


def logits_of(model: Any, hidden: Float[Tensor, "rows positions width"]) -> Float[Tensor, "rows positions words"] | None:
    """What the model's forward pass makes of the body's output; None of a family whose head does not ask the body in a known way."""
    asked: list[bool] = []

    def known(*_: Any, **__: Any) -> Any:
        asked.append(True)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)

    tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)  # nobody reads them
    body = model.base_model
    with replaced(body, known), replaced(getattr(body, "decoder", body), known):  # OPT's head asks a part of the body
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits if asked else None
