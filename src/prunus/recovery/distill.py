"""What is kept of a model is trained to predict what the dense model predicted."""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..calibration.backwards import Backwards
from ..calibration.blocks import enter, evaluating, frozen
from ..calibration.pair import Watch, advance, unwatched
from ..calibration.placement import Placement
from ..calibration.readout import positions_at_once
from ..calibration.teaching import check_sequences, in_small_steps, keep_best, matrices_in, steps_of
from ..distillation import distilled_loss, streams_apart
from ..environment import release_memory, return_memory, reuse_memory
from ..errors import RecipeError
from ..sites import Anatomy, SublayerSite
from ..subnet import subnet
from ..traits import predicts_next
from . import Recovery

__all__ = ["Distill"]

_WARMUP = 0.1  # of the steps
_PARTS = 8  # in which the loss of the positions is computed whose logits are in memory together


@dataclass(frozen=True)
class Distill:
    """The matrices of all blocks, as far as they are not zero, and their biases are trained together to predict the calibration text and
    what the dense model predicts on it (cross-entropies; Hinton et al. 2015). One that predicts no next token, as an encoder, is trained
    until the stream behind its last block is the dense model's.

    Adafactor (Shazeer and Stern 2018) without momentum, whose steps are shares of a matrix's size: its rate grows in a tenth of the steps
    and then falls by a cosine. A block's weights are changed on the way back, as soon as their gradient is known, and in half precision
    rounded up or down at random: training takes the memory of one block, a copy of the weights in their own dtype, and what enters every
    block of the sequences of a step. After every epoch the loss is measured on an eighth of the sequences, which are not trained on; the
    model keeps the best weights it had, those before the training among them. Word vectors, norms, the head and what is zero stay.
    """

    epochs: int = 1  # through the sequences
    rate: float = 2e-3  # the largest, as a share of the root mean square of a matrix
    share: float = 1.0  # of the sequences that are trained and measured on
    temperature: float = 1.0  # of what the dense model predicts
    labels: float = 1.0  # what the text's own next tokens count for beside that
    first: Recovery | None = None  # repairs the model before that: patch, or reconstruct
    seed: int = 0  # of which sequences, their order, and rounding

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.rate > 0 or not self.temperature > 0 or self.labels < 0:
            raise RecipeError(f"epochs = {self.epochs}, rate = {self.rate:g}, temperature = {self.temperature:g}, labels = "
                              f"{self.labels:g}: expected at least 1, numbers above 0, and labels of 0 or more.")
        if not 0 < self.share <= 1:
            raise RecipeError(f"share = {self.share:g}: expected a share above 0 and at most 1.")
        if isinstance(self.first, Distill):
            raise RecipeError("recovery 'distill': first = distill: expected patch or reconstruct, which repair the model before it is "
                              "trained.")

    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """As of what repairs it first; and there have to be sequences to measure on beside those to train on."""
        check_sequences("distill", tokens)
        if self.first:
            self.first.check(model, anatomy, tokens, placement, batch)

    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> Sequence[str]:
        if not gone and not dense:
            return ()
        with torch.no_grad(), frozen(model), evaluating(model), ExitStack() as stack:
            with subnet(model, {name: value.to(model.get_parameter(name).device) for name, value in dense.items()}):
                taught = enter(model, anatomy, tokens, placement, in_small_steps(tokens, batch), stack)
                for depth, block in enumerate(anatomy.blocks):
                    advance(model, block, depth, taught, (), placement)
            said = self.first.recover(model, anatomy, gone, dense, tokens, placement, batch, watch) if self.first else ()
            return *said, *self.conclude(model, anatomy, gone, taught.hidden, tokens, placement, batch, watch)

    def conclude(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], taught: Float[Tensor, "samples length width"],
                 tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> Sequence[str]:
        rng, count = random.Random(self.seed), max(2, round(self.share * len(tokens)))
        chosen = torch.tensor(sorted(rng.sample(range(len(tokens)), count)))
        tokens, together = tokens[chosen], in_small_steps(tokens[chosen], batch)
        with torch.no_grad(), frozen(model), evaluating(model), ExitStack() as stack:
            return_memory()  # tensors of many sizes come and go
            stack.callback(reuse_memory)
            release_memory()  # holes that repairing the blocks left
            states = enter(model, anatomy, tokens, placement, together, stack)
            generator = torch.Generator(states.device).manual_seed(self.seed)
            lesson = _Lesson(self, Backwards(model, anatomy, gone, states, placement, generator), taught[chosen.to(taught.device)], tokens)
            groups = list(states.batches())
            lesson.steps = steps_of(groups, self.epochs)
            learned = keep_best([parameter for of in lesson.trained for parameter in of], groups, lesson.loss,
                                lambda rows, _: lesson.step(rows, watch), self.epochs, rng)
        return learned.remarks("recovery 'distill'")


@dataclass
class _Lesson:
    """The model as it is trained, and the dense model's stream behind the last block."""

    how: Distill
    model: Backwards
    taught: Float[Tensor, "samples length width"]
    tokens: Int[Tensor, "samples length"]
    steps: int = 0
    done: int = 0
    trained: list[list[nn.Parameter]] = field(init=False)  # block by block

    def __post_init__(self) -> None:
        model = self.model
        self.trained = [matrices_in(model.model, block, [branch for branch in block.branches if branch not in model.gone])
                        for block in model.anatomy.blocks]
        self._optimizers = [torch.optim.Adafactor(of, lr=self.how.rate, foreach=False) if of else None for of in self.trained]

    def loss(self, rows: slice) -> float:
        """Per token of some sequences."""
        return self._told(rows, self.model.forward(rows)[-1], None)

    def step(self, rows: slice, watch: Watch) -> bool:
        """Whether the loss of some sequences, which is descended, was a number."""
        rate = self.how.rate * min(1.0, (self.done + 1) / (_WARMUP * self.steps)) * (1 + math.cos(math.pi * self.done / self.steps)) / 2
        given = self.model.forward(rows)
        slope = torch.zeros_like(given[-1])
        found = self._told(rows, given[-1], slope)
        if math.isfinite(found):
            self.model.backward(given, slope, self.trained, lambda depth: self._change(depth, rate))
        self.done += 1
        watch("training what is kept", self.done, self.steps)
        return math.isfinite(found)

    def _change(self, depth: int, rate: float) -> None:
        optimizer = self._optimizers[depth]
        if optimizer is None:
            return
        for parameter in self.trained[depth]:
            if parameter.grad is not None:
                parameter.grad.mul_(parameter != 0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()

    def _told(self, rows: slice, hidden: Tensor, slope: Tensor | None) -> float:
        """The loss of some sequences; its gradient into `slope`."""
        if predicts_next(self.model.model):
            return self._of_predictions(rows, hidden, slope)
        with torch.set_grad_enabled(slope is not None):
            leaf = hidden.detach().requires_grad_(slope is not None)
            found = streams_apart([leaf], [self.taught[rows].to(leaf)])
        if slope is not None:
            slope.copy_(torch.autograd.grad(found, leaf)[0])
        return float(found.detach())

    def _of_predictions(self, rows: slice, hidden: Tensor, slope: Tensor | None) -> float:
        """Logits are of a few positions at a time, and what a loss makes of them, which is many times as much, of fewer: those of all
        positions would take more memory than all else."""
        length, total = hidden.shape[1] - 1, 0.0
        count = len(hidden) * length
        step = positions_at_once(self.model.model, len(hidden))
        for start in range(0, length, step):
            part = slice(start, min(start + step, length))
            tokens, following = self.tokens[rows, part], self.tokens[rows, part.start + 1 : part.stop + 1].flatten().to(hidden.device)
            with torch.no_grad():
                taught = self._logits(tokens, self.taught[rows, part].to(hidden))
            with torch.set_grad_enabled(slope is not None):
                leaf = hidden[:, part].detach().requires_grad_(slope is not None)
                logits = self._logits(tokens, leaf)
            found, back = self._apart(logits, taught, following, backwards=slope is not None)
            if slope is not None:
                slope[:, part] = torch.autograd.grad(logits, leaf, back)[0] / count
            total += found
        return total / count

    def _apart(self, logits: Tensor, taught: Tensor, following: Tensor, backwards: bool) -> tuple[float, Tensor]:
        """The loss of some positions, added up, and its gradient, which is filled in `backwards` only."""
        total, back = 0.0, torch.empty_like(logits)
        step = max(1, len(logits) // _PARTS)
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            with torch.set_grad_enabled(backwards):
                leaf = logits[part].detach().requires_grad_(backwards)
                found = distilled_loss(leaf, taught[part], following[part], self.how.temperature, self.how.labels) * len(leaf)
            if backwards:
                back[part] = torch.autograd.grad(found, leaf)[0]
            total += float(found.detach())
        return total, back

    def _logits(self, tokens: Tensor, hidden: Tensor) -> Float[Tensor, "positions words"]:
        model = self.model
        home = model.model.get_input_embeddings().weight.device  # blocks alone may be elsewhere
        found = model.states.leave(model.model, model.anatomy, tokens.to(home), hidden.to(home))
        return found.flatten(0, 1).to(hidden.device)
