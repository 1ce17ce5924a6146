"""Text that a language model writes itself, sampled from its own distribution."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from ..environment import release_memory
from ..errors import CorpusError
from ..traits import predicts_next
from .pair import Watch, unwatched

__all__ = ["written"]

_DOCUMENT = 128  # tokens at most; longer ones take longer to write, and calibrate no better
_TOGETHER = 128  # documents


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
    found, end = [], model.generation_config.eos_token_id  # one, several or none
    never = torch.tensor([] if end is None else end, dtype=torch.long, device=device).flatten()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # generate() draws from the global generator, which fork_rng puts back
        for first in range(0, total, _TOGETHER):
            watch("writing text to calibrate on", first, total)
            prompt = torch.full((min(_TOGETHER, total - first), 1), start, device=device)
            with _own_distribution(model):
                found.append(model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens - 1, pad_token_id=start,
                    logits_processor=[_Draw(never)],
                ).cpu())
    release_memory()  # keys and values grew with every word, and left holes
    watch("writing text to calibrate on", total, total)
    return torch.cat(found).view(samples, -1)[:, :length]


class _Draw(LogitsProcessor):
    """Leaves one word to each document, drawn at temperature 1 from all but those that would end it.

    One number is drawn and looked up among the sums of the probabilities; `generate` would draw one for every word there is, which
    takes a sixth of the seconds of a model as small as SmolLM2.
    """

    def __init__(self, never: Int[Tensor, "ends"]) -> None:
        self._never = never

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "documents words"]) -> Float[Tensor, "documents words"]:
        sums = scores.index_fill(1, self._never, -torch.inf).softmax(1).cumsum(1)
        drawn = torch.searchsorted(sums, torch.rand(len(sums), 1, device=sums.device) * sums[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn.clamp_max(scores.shape[1] - 1), 0.0)


@contextmanager
def _own_distribution(model: Any) -> Iterator[None]:
    """Without what the checkpoint's generation_config says of sampling, such as a penalty on words that were said, and of ends."""
    own = model.generation_config
    model.generation_config = type(own)()
    try:
        yield
    finally:
        model.generation_config = own
