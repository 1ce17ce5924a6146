"""Text that a language model writes itself, sampled from its own distribution."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import CorpusError
from ..traits import predicts_next
from .pair import Watch, unwatched

__all__ = ["written"]

_DOCUMENT = 256  # tokens at most; longer ones take longer to write, and calibrate no better
_TOGETHER = 64  # documents


@torch.no_grad()
def written(tokenizer: Any, model: Any, samples: int, length: int, seed: int,
            watch: Watch = unwatched) -> Int[Tensor, "samples length"]:
    """Documents at temperature 1, each from BOS on (or EOS, where there is none), one or several in a sequence. Raises CorpusError for a
    model that cannot write, and for a tokenizer that has neither."""
    if not predicts_next(model):
        raise CorpusError("corpus 'self': this model cannot generate text. Name a corpus or a file.")
    start = next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), None)
    if start is None:
        raise CorpusError("a model that writes calibration text: the tokenizer has neither BOS nor EOS to start from. Name a corpus "
                          "or a file, and let none be written (--written 0).")
    device = next(model.parameters()).device
    several = -(-length // _DOCUMENT)  # documents in a sequence
    tokens, total = -(-length // several), samples * several
    found = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # generate() draws from the global generator, which fork_rng puts back
        for first in range(0, total, _TOGETHER):
            watch("writing text to calibrate on", first, total)
            prompt = torch.full((min(_TOGETHER, total - first), 1), start, device=device)
            with _own_distribution(model):
                found.append(model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    max_new_tokens=tokens - 1, min_new_tokens=tokens - 1, pad_token_id=start,
                ).cpu())
    watch("writing text to calibrate on", total, total)
    return torch.cat(found).view(samples, -1)[:, :length]


@contextmanager
def _own_distribution(model: Any) -> Iterator[None]:
    """Without what the checkpoint's generation_config says of sampling, such as a penalty on words that were said."""
    own = model.generation_config
    model.generation_config = type(own)(eos_token_id=own.eos_token_id)
    try:
        yield
    finally:
        model.generation_config = own
