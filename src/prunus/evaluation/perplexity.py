"""Perplexity with a pinned protocol."""

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from ..calibration.blocks import replaced
from ..calibration.corpus import Text, has_split, read, windows
from ..calibration.sample import check_length, check_tokenizer, how_read, with_bos
from ..errors import RecipeError
from ..traits import predicts_next
from . import Context, Measurement

__all__ = ["Perplexity"]

_TOKENS = 2048  # per pass through the body
_LOGITS = 2**22  # elements of the largest tensor of logits: 16 MiB in float32


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood per predicted token, over windows that do not overlap (stride = length).

    The text is tokenised as a whole and cut from its beginning; the last, shorter window is left out. Each window
    predicts all its tokens but the first.
    """

    corpus: str = "builtin"  # as in Calibration
    split: str | None = None  # None: test, or validation where there is no test
    length: int = 512  # tokens per window
    tokens: int = 20_480  # how many are read, a fixed-token protocol; 0: the whole text, the full-stride one
    bos: bool | None = None  # begin every window with BOS; None: as the tokenizer does by itself

    unit: ClassVar[str] = "perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def __post_init__(self) -> None:
        if self.length < 2:
            raise RecipeError(f"perplexity: length = {self.length}: expected at least 2 tokens.")
        if self.tokens and self.tokens < self.length:
            raise RecipeError(f"perplexity: tokens = {self.tokens} is less than one window of {self.length}.")

    def text(self) -> Text:
        """The text it is measured on."""
        split = self.split or ("test" if has_split(self.corpus, "test") else "validation")
        return read(self.corpus, split)

    def beginning(self) -> Text:
        """As much of it as is measured, and some more: 8 characters per token."""
        return self.text().beginning(8 * self.tokens) if self.tokens else self.text()

    def measure(self, model: nn.Module, context: Context) -> Measurement:
        start = time.perf_counter()
        if not predicts_next(model):
            raise RecipeError("perplexity needs a model that predicts the next token; this one does not.")
        check_length(model, self.length, "perplexity.length")
        check_tokenizer(context.tokenizer, "perplexity")
        text, bos = self.text(), with_bos(context.tokenizer, self.bos)
        count = self.tokens // self.length if self.tokens else None
        table = windows(text, context.tokenizer, self.length, count, bos=bos)
        losses = tuple(losses_of(model, table))
        mean = sum(losses) / len(losses)
        value = math.exp(mean) if mean < 700 else math.inf
        protocol = self._protocol(text, table, bos, model, context.tokenizer)
        return Measurement(value, self.unit, self.better, protocol, losses, time.perf_counter() - start)

    def _protocol(self, text: Text, table: Tensor, bos: bool, model: Any, tokenizer: Any) -> str:
        start = "BOS in every window" if bos else "no BOS"
        cut = f"first {table.numel()} tokens" if self.tokens else "full stride"
        return (f"{text.name} {text.split} perplexity, text sha256 {text.digest}, {text.joined}, {cut}, "
                f"{len(table)} windows of {self.length}, stride {self.length}, {start}, {how_read(model, tokenizer)}")


@torch.no_grad()
def losses_of(model: Any, table: Int[Tensor, "windows length"]) -> list[float]:
    """The mean negative log-likelihood of each window, in float32."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch = max(1, _TOKENS // table.shape[1])
    losses: list[float] = []
    for start in range(0, len(table), batch):
        losses += _losses(model, table[start : start + batch].to(device))
    model.train(training)
    return losses


def _losses(model: Any, tokens: Int[Tensor, "windows length"]) -> list[float]:
    """One pass through the body; the head runs on slices of positions, as all logits at once may need gigabytes."""
    hidden = model.base_model(input_ids=tokens, use_cache=False)[0]
    length = tokens.shape[1]
    step = max(1, _LOGITS // (len(tokens) * model.config.get_text_config().vocab_size))
    total = torch.zeros(len(tokens), device=tokens.device)
    for start in range(0, length - 1, step):
        end = min(start + step, length - 1)
        logits = _head(model, tokens, hidden, slice(start, end))
        targets = tokens[:, start + 1 : end + 1]
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        total += losses.view(len(tokens), -1).sum(1)
    return [float(loss) for loss in total / (length - 1)]


def _head(model: Any, tokens: Tensor, hidden: Tensor, positions: slice) -> Tensor:
    """The logits of some positions: the model's own forward pass, with the body's output already known.

    A family whose head does not ask the body in the usual way is run as a whole.
    """
    asked: list[bool] = []

    def known(*_: Any, **__: Any) -> Any:
        asked.append(True)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden[:, positions])

    with replaced(model.base_model, known):
        logits: Tensor = model(input_ids=tokens[:, positions], use_cache=False).logits
    return logits if asked else model(input_ids=tokens, use_cache=False).logits[:, positions]
