"""Perplexity with a pinned protocol."""

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..calibration.blocks import evaluating
from ..calibration.corpus import Text
from ..calibration.readout import window_logits
from ..calibration.reported import beginning_of, check_windows, report_text, windows_of
from ..errors import RecipeError
from ..traits import predicts_next
from ..widening import widened
from . import Context, Measurement

__all__ = ["Perplexity"]


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
        check_windows(self.length, self.tokens, "perplexity")

    def text(self) -> Text:
        """The text it is measured on."""
        return report_text(self.corpus, self.split)

    def beginning(self) -> Text:
        """As much of it as is measured, and some more."""
        return beginning_of(self.text(), self.tokens)

    def measure(self, model: nn.Module, context: Context) -> Measurement:
        start = time.perf_counter()
        if not predicts_next(model):
            raise RecipeError("perplexity needs a model that predicts the next token; this one does not.")
        text = self.text()
        table, how = windows_of(text, context.tokenizer, model, self.length, self.tokens, self.bos, "perplexity",
                               context.stored)
        losses = tuple(losses_of(model, table))
        mean = sum(losses) / len(losses)
        value = math.inf if mean >= 700 else math.exp(mean)
        return Measurement(value, self.unit, self.better, f"{text.name} {text.split} perplexity, {how}", losses,
                           time.perf_counter() - start)


@widened()
def losses_of(model: Any, table: Int[Tensor, "windows length"]) -> list[float]:
    """The mean negative log-likelihood of each window, in float32."""
    total = torch.zeros(len(table))
    with evaluating(model):
        for window, start, logits in window_logits(model, table):
            targets = table[window, start + 1 : start + 1 + len(logits)].to(logits.device)
            total[window] += nn.functional.cross_entropy(logits.float(), targets, reduction="sum").cpu()
    return [float(loss) for loss in total / (table.shape[1] - 1)]
