"""Perplexity with a pinned protocol."""

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..calibration.corpus import Text, has_split, read, windows
from ..calibration.sample import check_length, with_bos
from ..errors import RecipeError
from . import Context, Measurement

__all__ = ["Perplexity"]

_LOGITS = 2**25  # elements of the largest logits tensor: 128 MiB in float32


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

    def measure(self, model: nn.Module, context: Context) -> Measurement:
        start = time.perf_counter()
        if not getattr(model, "can_generate", lambda: False)():
            raise RecipeError("perplexity needs a model that predicts the next token; this one does not.")
        check_length(model, self.length, "perplexity.length")
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
        words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        vocabulary = hashlib.sha256(repr(words).encode()).hexdigest()[:8]
        cut = f"first {table.numel()} tokens" if self.tokens else "full stride"
        return (f"{text.name} {text.split} perplexity, text sha256 {text.digest}, {text.joined}, {cut}, "
                f"{len(table)} windows of {self.length}, stride {self.length}, {start}, "
                f"{str(model.dtype).removeprefix('torch.')}, tokenizer of {len(words)} words {vocabulary}")


@torch.no_grad()
def losses_of(model: Any, table: Int[Tensor, "windows length"]) -> list[float]:
    """The mean negative log-likelihood of each window."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch = max(1, _LOGITS // (table.shape[1] * model.config.get_text_config().vocab_size))
    losses: list[float] = []
    for start in range(0, len(table), batch):
        tokens = table[start : start + batch].to(device)
        logits = model(input_ids=tokens, use_cache=False).logits
        losses += [float(_loss(logits[row, :-1], tokens[row, 1:])) for row in range(len(tokens))]
    model.train(training)
    return losses


def _loss(logits: Float[Tensor, "token vocabulary"], targets: Int[Tensor, "token"]) -> Float[Tensor, ""]:
    """In float32 and by slices, so that no second tensor of the logits' size is made."""
    total = torch.zeros((), device=logits.device)
    for piece, wanted in zip(logits.split(64), targets.split(64), strict=True):
        total += torch.nn.functional.cross_entropy(piece.float(), wanted, reduction="sum")
    return total / len(targets)
