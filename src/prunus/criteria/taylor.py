"""How much the loss depends on a channel, by its gradient (LLM-Pruner, Ma et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import CalibrationError, RecipeError
from ..stats import ChannelLoss, InputStats, LossNeeds, Needs

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor:
    """LLM-Pruner's estimates (Ma et al. 2023, section 3.2), over all weights w of a channel: rows of its producers, columns of its
    consumer.

    With g the gradient of the loss and F the mean square of those of single sequences, `form` is one of:

    - vector: |sum w g|, how fast the loss changes when the channel is scaled as a whole;
    - element: sum |w g|, when its weights are scaled one by one;
    - second: sum w^2 F;
    - mixed: sum |w g - w^2 F / 2|, both orders; hardly another than element, as F is small;
    - fused: c softmax(c, f)_c + f softmax(c, f)_f, channel by channel, of vector (c) and element (f), each divided by its mean over the
      site. That a coarse and a fine estimate are fused by attention, with weights of their own for every channel, is HyWIA's idea
      (Zhang et al. 2024, arXiv 2403.10799), of which no code is public. The formula is ours: who sees more in a channel has more
      to say.

    Departs from LLM-Pruner's released code, in which queries, keys and values do not count: all producers do. Biases do not.
    All weights of the consumer in one channel have the same saliency, and they add up to the channel's.
    """

    form: Literal["vector", "element", "second", "mixed", "fused"] = "second"  # of the estimate
    sequences: int = 64  # of the calibration text, for the gradient

    needs: ClassVar[Needs] = "nothing"
    scope: ClassVar[str] = "matrix"

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise RecipeError(f"sequences = {self.sequences}: expected at least one.")

    @property
    def loss_needs(self) -> LossNeeds:
        """Sums over channels."""
        return LossNeeds(sequences=self.sequences, channels=("vector", "element") if self.form == "fused" else (self.form,))

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats, loss: ChannelLoss | None = None) -> Float[Tensor, "out in"]:
        if loss is None:
            raise CalibrationError(f"{stats.name}: the loss was not differentiated by channel; the solver must pass on what "
                                   "'taylor' wants to know of it (loss_needs).")
        score = self._score(loss).to(weight)
        width = weight.shape[1] // len(score)
        return (score / (weight.shape[0] * width)).repeat_interleave(width).expand_as(weight)

    def _score(self, loss: ChannelLoss) -> Float[Tensor, "channels"]:
        match self.form:
            case "vector":
                return loss.sums("vector").abs()
            case "fused":
                both = torch.stack([_relative(loss.sums("vector").abs()), _relative(loss.sums("element"))])
                return (both * both.softmax(0)).sum(0)
            case form:
                return loss.sums(form)


def _relative(score: Float[Tensor, "channels"]) -> Float[Tensor, "channels"]:
    """In units of its mean; all 0 stays so."""
    return score / score.mean().clamp_min(torch.finfo(score.dtype).tiny)
