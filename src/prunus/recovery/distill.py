"""What is kept of a model is trained to predict what the dense model predicted."""

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..calibration.blocks import evaluating, frozen
from ..calibration.pair import Watch, unwatched
from ..calibration.placement import Placement
from ..calibration.teaching import check_sequences, in_small_steps, precise, train_kept
from ..distillation import distilled_loss
from ..errors import RecipeError
from ..silence import silenced
from ..sites import Anatomy, SublayerSite
from ..subnet import subnet
from ..traits import predicts_next
from . import Recovery

__all__ = ["Distill"]

_WARMUP = 0.05  # of the steps


@dataclass(frozen=True)
class Distill:
    """All weights of the blocks that are not zero are trained together by Adam, whose rate grows in a twentieth of the steps and then
    falls by a cosine, to predict the calibration text and what the dense model predicts on it (cross-entropies; Hinton et al. 2015).

    After every epoch the loss is measured on an eighth of the sequences that are not trained on; the model keeps the best weights it
    had, those before the training among them. Word vectors, the head and what is zero stay as they are. Needs the memory of training:
    sixteen bytes for every weight of the blocks, beside a copy of the dense ones.
    """

    epochs: int = 1  # through the sequences
    rate: float = 2e-4  # the largest of Adam
    temperature: float = 1.0  # of what the dense model predicts
    labels: float = 1.0  # what the text's own next tokens count for beside that
    first: Recovery | None = None  # repairs the model before that: patch, or reconstruct
    seed: int = 0  # of the order of the sequences

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.rate > 0 or not self.temperature > 0 or self.labels < 0:
            raise RecipeError(f"epochs = {self.epochs}, rate = {self.rate:g}, temperature = {self.temperature:g}, labels = "
                              f"{self.labels:g}: expected at least 1, numbers above 0, and labels of 0 or more.")

    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """The model has to predict the next token; and as of what repairs it first."""
        if not predicts_next(model):
            raise RecipeError(f"recovery 'distill': a {type(model).__name__} predicts no next token. Use prunus finetune on its task.")
        check_sequences("distill", tokens)
        if self.first:
            self.first.check(model, anatomy, tokens, placement, batch)

    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> Sequence[str]:
        if not gone and not dense:
            return ()
        blocks = [model.get_submodule(block.name) for block in anatomy.blocks]
        names = [(f"{block.name}.{name}", parameter) for block, module in zip(anatomy.blocks, blocks, strict=True)
                 for name, parameter in module.named_parameters()]
        whole = {name: dense[name] if name in dense else parameter.detach().clone() for name, parameter in names}
        said = tuple(self.first.recover(model, anatomy, gone, dense, tokens, placement, batch, watch)) if self.first else ()
        with torch.no_grad(), frozen(model), evaluating(model), ExitStack() as stack:
            stack.enter_context(placement.visiting(model))
            known = {name: value.to(placement.device) for name, value in whole.items()}
            dtype = next(model.parameters()).dtype
            trained = [parameter for block in blocks for parameter in block.parameters()]
            stack.enter_context(precise(trained))
            lesson, together = _Lesson(model, gone, known, tokens.to(placement.device), dtype), in_small_steps(tokens, batch)
            taught = train_kept(trained, [slice(start, start + together) for start in range(0, len(tokens), together)],
                                lambda rows: lesson.loss(rows, self), epochs=self.epochs, rates=[self.rate] * len(trained),
                                rng=random.Random(self.seed), warmup=_WARMUP,
                                told=lambda done, steps: watch("training what is kept", done, steps))
        return *said, *taught.remarks("recovery 'distill'")


@dataclass(frozen=True)
class _Lesson:
    """The model as it is trained, and as it was."""

    model: Any
    gone: Sequence[SublayerSite]
    dense: Mapping[str, Tensor]
    tokens: Int[Tensor, "samples length"]
    dtype: torch.dtype  # in which matrices are multiplied

    def loss(self, rows: slice, how: Distill) -> Float[Tensor, ""]:
        """Per token of some sequences."""
        tokens = self.tokens[rows]
        mixed = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(tokens.device.type, dtype=self.dtype if mixed else torch.bfloat16, enabled=mixed):
            with torch.no_grad(), subnet(self.model, self.dense):
                taught = self._said(tokens)
            with silenced(self.model, self.gone):
                said = self._said(tokens)
        return distilled_loss(said, taught, tokens[:, 1:].flatten(), how.temperature, how.labels)

    def _said(self, tokens: Tensor) -> Float[Tensor, "predicted words"]:
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits[:, :-1].flatten(0, 1)
