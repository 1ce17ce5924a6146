"""What is kept of a model is trained to predict what the dense model predicted."""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..calibration.blocks import evaluating, frozen
from ..calibration.pair import Watch, unwatched
from ..calibration.placement import Placement
from ..calibration.readout import head_runs_alone, logits_of, positions_at_once
from ..calibration.teaching import check_sequences, in_small_steps, precise, train_kept
from ..distillation import distilled_loss
from ..errors import RecipeError
from ..silence import silenced
from ..sites import Anatomy, SublayerSite
from ..subnet import subnet
from ..traits import predicts_next
from . import Recovery, reselects

__all__ = ["Distill"]

_WARMUP = 0.05  # of the steps


@dataclass(frozen=True)
class Distill:
    """All weights of the blocks that are not zero are trained together by Adam, whose rate grows in a twentieth of the steps and then
    falls by a cosine, to predict the calibration text and what the dense model predicts on it (cross-entropies; Hinton et al. 2015).

    After every epoch the loss is measured on an eighth of the sequences that are not trained on; the model keeps the best weights it
    had, those before the training among them. Word vectors, the head and what is zero stay as they are. Needs the memory of training:
    sixteen bytes for every weight of the blocks, and the dense model's last hidden states.
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
        if isinstance(self.first, Distill):
            raise RecipeError("recovery 'distill': first = distill: expected patch or reconstruct, which repair the model before it is "
                              "trained.")
        if reselects(self.first):
            raise RecipeError("recovery 'distill': first.reselect chooses masks again as blocks are pruned, and here all are by then. "
                              "Leave it out, or use reconstruct alone.")

    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """The model has to predict the next token; and as of what repairs it first."""
        if not predicts_next(model):
            raise RecipeError(f"recovery 'distill': a {type(model).__name__} predicts no next token. Use prunus finetune on its task.")
        check_sequences("distill", tokens)
        if not head_runs_alone(model):
            raise RecipeError(f"recovery 'distill': the head of a {type(model).__name__} cannot be run alone. Use reconstruct.")
        if self.first:
            self.first.check(model, anatomy, tokens, placement, batch)

    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> Sequence[str]:
        if not gone and not dense:
            return ()
        together = in_small_steps(tokens, batch)
        groups = [slice(start, start + together) for start in range(0, len(tokens), together)]
        with torch.no_grad(), frozen(model), evaluating(model), ExitStack() as stack:
            taught = _taught(model, dense, tokens, groups, placement, stack)
            said = tuple(self.first.recover(model, anatomy, gone, dense, tokens, placement, batch, watch)) if self.first else ()
            stack.enter_context(placement.visiting(model))
            lesson = _Lesson(model, gone, taught, tokens.to(placement.device), next(model.parameters()).dtype)
            trained = [parameter for block in anatomy.blocks for parameter in model.get_submodule(block.name).parameters()]
            stack.enter_context(precise(trained))
            learned = train_kept(trained, groups, lambda rows: lesson.loss(rows, self), epochs=self.epochs,
                                 rates=[self.rate] * len(trained), rng=random.Random(self.seed), warmup=_WARMUP,
                                 told=lambda done, steps: watch("training what is kept", done, steps))
        return *said, *learned.remarks("recovery 'distill'")


def _taught(model: Any, dense: Mapping[str, Tensor], tokens: Tensor, groups: Sequence[slice], placement: Placement,
            stack: ExitStack) -> Float[Tensor, "samples length width"]:
    """What the dense model's body gives: its head makes all of its predictions of that, and no copy of the model has to stay."""
    found: Tensor | None = None
    with placement.visiting(model), subnet(model, {name: value.to(placement.device) for name, value in dense.items()}):
        for rows in groups:
            hidden: Tensor = model.base_model(input_ids=tokens[rows].to(placement.device), use_cache=False)[0]
            if found is None:
                found = stack.enter_context(placement.hidden((len(tokens), *hidden.shape[1:]), hidden.dtype))
            found[rows] = hidden
    assert found is not None
    return found


@dataclass(frozen=True)
class _Lesson:
    """The model as it is trained, and what the dense one's body gave."""

    model: Any
    gone: Sequence[SublayerSite]
    taught: Float[Tensor, "samples length width"]
    tokens: Int[Tensor, "samples length"]
    dtype: torch.dtype  # in which matrices are multiplied

    def loss(self, rows: slice, how: Distill) -> Float[Tensor, ""]:
        """Per token of some sequences."""
        tokens, mixed = self.tokens[rows], self.dtype in (torch.bfloat16, torch.float16)
        taught, targets = self.taught[rows, :-1].flatten(0, 1), tokens[:, 1:].flatten()

        def part(hidden: Tensor, some: slice) -> Tensor:
            with torch.no_grad():
                told = self._logits(taught[some].to(hidden))
            return distilled_loss(self._logits(hidden), told, targets[some], how.temperature, how.labels) * (len(hidden) / len(targets))

        with torch.autocast(tokens.device.type, dtype=self.dtype if mixed else torch.bfloat16, enabled=mixed):
            with silenced(self.model, self.gone):
                hidden = self.model.base_model(input_ids=tokens, use_cache=False)[0]
            found: Tensor = _InParts.apply(hidden[:, :-1].flatten(0, 1), part, positions_at_once(self.model))
        return found

    def _logits(self, hidden: Float[Tensor, "positions width"]) -> Float[Tensor, "positions words"]:
        found = logits_of(self.model, hidden[None])
        assert found is not None  # check() has asked
        return found[0]


class _InParts(torch.autograd.Function):
    """A sum over parts of what is given, `step` of it at a time, of which nothing stays: its gradient is computed with it, as the logits
    of all positions would take more memory than all else."""

    @staticmethod
    def forward(context: Any, given: Tensor, part: Callable[[Tensor, slice], Tensor], step: int) -> Tensor:
        slope, total = torch.zeros_like(given), given.new_zeros((), dtype=torch.promote_types(given.dtype, torch.float32))
        for start in range(0, len(given), step):
            rows, asked = slice(start, start + step), context.needs_input_grad[0]
            with torch.set_grad_enabled(asked):
                leaf = given[rows].detach().requires_grad_(asked)
                found = part(leaf, rows)
            if asked:
                slope[rows] = torch.autograd.grad(found, leaf)[0]
            total += found.detach()
        context.save_for_backward(slope)
        return total

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = context.saved_tensors
        return slope * slopes[0].to(slope.dtype), None, None
