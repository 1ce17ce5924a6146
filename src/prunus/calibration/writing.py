"""Text that a language model writes itself, sampled from its own distribution."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
_TOGETHER = 128  # documents at most
_SHARE = 0.5  # of the bytes of the model's weights that keys and values of documents written together may take
_ALWAYS = 2**26  # bytes that they may take of any model


@torch.no_grad()
def written(tokenizer: Any, model: Any, samples: int, length: int, seed: int,
            watch: Watch = unwatched) -> Int[Tensor, "samples length"]:
    """Documents at temperature 1, each from BOS on (or EOS, where there is none), one or several in a sequence. How many are written
    together, which is a matter of memory, changes them by no more than rounding. Raises CorpusError for a model that cannot write, and
    for a tokenizer that has neither."""
    if not predicts_next(model):
        raise CorpusError("corpus 'self': this model cannot generate text. Name a corpus or a file.")
    start = next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), None)
    if start is None:
        raise CorpusError("a model that writes calibration text: the tokenizer has neither BOS nor EOS to start from. Name a corpus "
                          "or a file, and let none be written (--written 0).")
    device = next(model.parameters()).device
    several = -(-length // _DOCUMENT)  # documents in a sequence
    tokens = -(-length // several)
    drawn = torch.rand(samples * several, tokens - 1, generator=torch.Generator().manual_seed(seed))
    end = model.generation_config.eos_token_id  # one, several or none
    never = torch.tensor([] if end is None else end, dtype=torch.long, device=device).flatten()
    found, done = [], 0
    for part in drawn.split(_together(model, tokens)):
        draw = _Draw(never, part.to(device), partial(_tell, watch, done, drawn.numel()))
        done += part.numel()
        prompt = torch.full((len(part), 1), start, device=device)
        with _own_distribution(model):
            found.append(model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens - 1, pad_token_id=start,
                logits_processor=[draw],
            ).cpu())
    release_memory()  # keys and values grew with every word, and left holes
    _tell(watch, done, done, 0)
    return torch.cat(found).view(samples, -1)[:, :length]


def _tell(watch: Watch, before: int, total: int, now: int) -> None:
    watch("writing text to calibrate on", before + now, total)


def _together(model: Any, tokens: int) -> int:
    """How many documents are written together, by the keys and values that the model's configuration says there are of a token."""
    config, weights = model.config.get_text_config(), list(model.parameters())
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    document = 2 * config.num_hidden_layers * groups * width * tokens * weights[0].element_size()
    return min(_TOGETHER, max(1, int(max(_ALWAYS, _SHARE * sum(weight.nbytes for weight in weights))) // document))


class _Draw(LogitsProcessor):
    """Leaves one word to each document, drawn at temperature 1 from all but those that would end it.

    A number in [0, 1) for every document and word is looked up among the sums of the probabilities; `generate` would draw one for every
    word there is, which takes a sixth of the seconds of a model as small as SmolLM2.
    """

    def __init__(self, never: Int[Tensor, "ends"], drawn: Float[Tensor, "documents steps"], tell: Callable[[int], None]) -> None:
        self._never, self._drawn, self._tell = never, drawn, tell

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "documents words"]) -> Float[Tensor, "documents words"]:
        step = input_ids.shape[1] - 1  # behind the word that a document begins with
        self._tell(step * len(scores))
        sums = scores.index_fill(1, self._never, -torch.inf).softmax(1).cumsum(1)
        found = torch.searchsorted(sums, self._drawn[:, step : step + 1] * sums[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, found.clamp_max(scores.shape[1] - 1), 0.0)


@contextmanager
def _own_distribution(model: Any) -> Iterator[None]:
    """Without what the checkpoint's generation_config says of sampling, such as a penalty on words that were said, and of ends."""
    own = model.generation_config
    model.generation_config = type(own)()
    try:
        yield
    finally:
        model.generation_config = own
