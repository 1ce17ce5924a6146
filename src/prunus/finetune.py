"""Training a super-network, or the dense model alone, on a task or on text; interrupted, it goes on with the same result."""

import copy
import hashlib
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .anatomy import describe
from .calibration.blocks import evaluating
from .calibration.tasks import Encoded
from .distillation import UNKNOWN, distilled_loss, garbled, task_loss
from .errors import CorpusError, RecipeError, TrainingError
from .files import fingerprint, intact, keep_tensors
from .problem import check_weights
from .search.genome import Genome
from .search.space import Candidate
from .streams import Streams
from .supernet import Net, TrainingStrategy
from .trainable import accelerated, dropping, trainable, without
from .traits import classifies, predicts_next, total, weight_norms
from .widening import widened
from .words import WordVectors

__all__ = ["Trained", "Training", "TrainingProgress", "check_teacher", "digest_of", "train_supernet"]

_ALIKE = 16  # steps among which examples are sorted by length
_LOOK = 8  # examples of a batch on which sub-networks are ranked


@dataclass(frozen=True)
class Training:
    """How long and how fast; AdamW, whose rate falls linearly to 0. (The defaults of Klein et al. 2024, whose code reads 8 at a time.)

    Weights that are trained are in float32 while they are, whatever the model's dtype is.
    """

    epochs: int = 5  # passes through the examples
    steps: int = 0  # changes of the weights at most; 0: as many as the epochs have
    batch: int = 8  # examples, or sequences, at a time
    accumulate: int = 1  # batches whose gradients are added up before the weights change
    rate: float = 2e-5  # the largest learning rate
    warmup: float = 0.0  # the fraction of the steps in which the rate grows to it
    decay: float = 0.01  # of the weights, per step and unit of the rate
    clip: float = 0.0  # the largest norm of the gradient; 0: none
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # in which matrices are multiplied
    rank: int = 0  # of low-rank adapters (LoRA) of all block matrices, which are trained in their stead; 0: all weights are trained
    alpha: float = 16.0  # of the adapters, which are multiplied by alpha / rank
    dropout: bool = True  # as the model's config says; a small model that learns from another may fit it better without
    checkpoint: int = 500  # steps after which the training is kept on disk; it is after every epoch too
    seed: int = 0  # of the order of the examples, dropout, sub-networks and adapters

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.accumulate, self.checkpoint) < 1 or min(self.steps, self.rank) < 0:
            raise RecipeError(f"epochs = {self.epochs}, batch = {self.batch}, accumulate = {self.accumulate}, checkpoint = "
                              f"{self.checkpoint}, steps = {self.steps}, rank = {self.rank}: expected at least 1, of the last two 0.")
        if not self.rate > 0 or not 0 <= self.warmup < 1 or min(self.decay, self.clip) < 0 or not self.alpha > 0:
            raise RecipeError(f"rate = {self.rate:g}, warmup = {self.warmup:g}, decay = {self.decay:g}, clip = {self.clip:g}, alpha = "
                              f"{self.alpha:g}: expected a rate and an alpha above 0, a warm-up in [0, 1), no negative number.")

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step `step`, from 0, of `steps`."""
        warm = round(self.warmup * steps)
        return self.rate * (step / warm if step < warm else (steps - step) / (steps - warm))


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training has come."""

    done: int  # steps
    total: int
    epoch: int  # from 0, of the step just done
    loss: float  # of that step, the mean over its networks
    seconds: float  # since the beginning, those before an interruption too
    remaining: float  # seconds, about


@dataclass(frozen=True)
class Trained:
    """What a training was."""

    steps: int  # changes of the weights
    passes: int  # of a network, forwards and backwards through a batch
    looks: int  # of a sub-network, forwards through a part of a batch, where they are ranked
    losses: tuple[float, ...]  # by epoch: the mean over its steps of the mean over their networks
    seconds: float  # those before an interruption too


@widened()
def train_supernet(model: Any, genome: Genome | None, strategy: TrainingStrategy, data: Encoded | Tensor, training: Training = Training(),
                   *, folder: Path | None = None, watch: Callable[[TrainingProgress], None] | None = None, share: float = 1.0,
                   teacher: Any = None) -> Trained:
    """Train `model` where it is, in place, on the examples of a task or on sequences of tokens (samples, length).

    In `folder` the weights, the optimizer's state and the step are kept, as whole files; called again with equal arguments and the
    model as it was, the training goes on from there and ends with the same weights, to the bit on one machine. What is random in a
    step depends on the seed and the step alone, so nothing of it has to be kept. The genome may be None where the strategy trains
    the dense model alone. With a `share` below 1 the training is kept after this share of its steps, and paused; called again with a
    larger one it goes on. A `teacher` takes the place of the strategy's: another model with the same vocabulary and outputs, or what it
    answers to each example of the task (examples, outputs). One process, one device.
    Raises RecipeError when the parts do not go together or `folder` holds another training, TrainingError when a loss is no number.
    """
    device = next(model.parameters()).device
    _check(model, genome, strategy, data, teacher)
    identity = _identity(model, genome, strategy, data, training, teacher) if folder else ""
    streams = Streams(model, teacher) if getattr(strategy, "hidden", 0.0) > 0 else None
    taught = teacher is None and getattr(strategy, "teacher", "") == "frozen"
    apart = taught and (not training.rank or classifies(model))  # else the teacher is the model without its adapters
    teacher = copy.deepcopy(model).requires_grad_(False) if apart else teacher
    matrices = [site.name for site in describe(model).sites("linear")] if training.rank else []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), accelerated(training.precision, device) as accelerator:
        torch.manual_seed(training.seed)
        with trainable(model, training.rank, training.alpha, matrices) as adapters, dropping(model, training.dropout):
            asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(asked, lr=training.rate, weight_decay=training.decay, fused=True))
            run = _Run(model, genome, strategy, data, training, device, accelerator, optimizer, teacher, adapters if taught else None,
                       WordVectors(model), streams)
            with streams.heard() if streams else nullcontext():
                return run.to(max(1, round(share * run.steps)), folder, identity, watch)


def _check(model: Any, genome: Genome | None, strategy: TrainingStrategy, data: Encoded | Tensor, teacher: Any) -> None:
    name = type(strategy).__name__
    if genome is None and not getattr(strategy, "alone", False):
        raise RecipeError(f"strategy {name} trains sub-networks: expected a search space. Name one, or use standard.")
    if isinstance(data, Encoded) and not classifies(model):
        raise RecipeError(f"a task needs a model with a head, and this is a {type(model).__name__}. Load it with the task's labels.")
    if not isinstance(data, Encoded) and not predicts_next(model):
        raise RecipeError(f"text trains a model that predicts the next token, and this is a {type(model).__name__}. Use a task.")
    if not len(data):
        raise CorpusError("training: there is no example.")
    check_weights(model)
    check_teacher(strategy, teacher)
    if isinstance(teacher, Tensor) and getattr(strategy, "noise", 0.0) > 0:
        raise RecipeError("noise: answers to the examples say nothing of others. Expected the teacher itself, or noise=0.")
    if isinstance(teacher, Tensor) and isinstance(data, Encoded) and tuple(teacher.shape) != (len(data), data.classes):
        raise RecipeError(f"teacher: answers of shape {tuple(teacher.shape)}, expected {len(data)} examples and {data.classes} outputs.")


def check_teacher(strategy: TrainingStrategy, teacher: Any) -> None:
    """Refuse another model where nothing learns from it, and none where one is needed. Raises RecipeError."""
    name = type(strategy).__name__
    if teacher is None and getattr(strategy, "teacher", "") == "other":
        raise RecipeError(f"strategy {name} learns from another model: expected a teacher. Name one (--teacher), or use standard.")
    if teacher is not None and not hasattr(strategy, "temperature"):
        raise RecipeError(f"strategy {name} learns from labels alone, not from a teacher. Use distilled, kd or one_shot.")


def _identity(model: Any, genome: Genome | None, strategy: TrainingStrategy, data: Encoded | Tensor, training: Training,
              teacher: Any) -> str:
    """A hash of all that decides the result."""
    units = getattr(genome, "units", None)
    order = {name: channels.tolist() for name, channels in units.order.items()} if units else {}
    space = "" if genome is None else repr((genome.sizes, genome.smallest, genome.largest, order))
    weights = [f"{name} {tuple(parameter.shape)} {total(parameter.detach())!r}"
               for name, parameter in model.named_parameters()]
    told = [] if teacher is None else [digest_of(teacher)] if isinstance(teacher, Tensor) else weight_norms(teacher)
    return fingerprint(repr(strategy), repr(replace(training, checkpoint=1)), space, digest_of(data), type(model).__name__, *weights, *told)


def digest_of(data: Encoded | Tensor) -> str:
    return data.protocol if isinstance(data, Encoded) else hashlib.sha256(data.cpu().numpy().tobytes()).hexdigest()


@dataclass
class _History:
    """What a training has done so far."""

    step: int = 0
    passes: int = 0
    looks: int = 0
    total: float = 0.0  # of the losses of this epoch
    count: int = 0  # its steps
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Run:
    """A training under way."""

    model: Any
    genome: Any
    strategy: TrainingStrategy
    data: Encoded | Tensor
    training: Training
    device: torch.device
    accelerator: Any
    optimizer: Any
    teacher: Any  # a model that stays as it was, or its answers by example
    adapters: Any  # without which the model is as it was
    words: WordVectors
    streams: Streams | None  # of the model and the teacher, where the one learns from the other's
    history: _History = field(default_factory=_History)
    epoch: int = -1
    order: list[list[int]] = field(default_factory=list)  # the examples of every step of this epoch

    @property
    def together(self) -> int:
        """Examples of a step."""
        return self.training.batch * self.training.accumulate

    @property
    def steps(self) -> int:
        """In all."""
        steps = self.training.epochs * self.per_epoch
        return min(steps, self.training.steps or steps)

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.data) / self.together)

    def to(self, last: int, folder: Path | None, identity: str, watch: Callable[[TrainingProgress], None] | None) -> Trained:
        """All steps that are left up to one."""
        if folder:
            self._recall(last, folder, identity)
        history, start = self.history, time.perf_counter()
        first, before = history.step, history.seconds
        while history.step < last:
            loss = self._step(history.step)
            history.step += 1
            history.total, history.count = history.total + loss, history.count + 1
            ended = history.step % self.per_epoch == 0 or history.step == self.steps
            epoch = len(history.losses)
            if ended:
                history.losses.append(history.total / history.count)
                history.total, history.count = 0.0, 0
            spent = time.perf_counter() - start
            history.seconds = before + spent
            if folder and (ended or history.step == last or history.step % self.training.checkpoint == 0):
                self._keep(folder, identity)
            if watch:
                left = spent / (history.step - first) * (self.steps - history.step)
                watch(TrainingProgress(history.step, self.steps, epoch, loss, history.seconds, left))
        return Trained(history.step, history.passes, history.looks, tuple(history.losses), history.seconds)

    def _step(self, step: int) -> float:
        """Add up the gradients of all networks over all batches of a step, and change the weights; the mean loss of the networks."""
        rng = random.Random(f"{self.training.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))  # for dropout
        rows = self._rows(step)
        nets = self.strategy.nets(self.genome, step, self.steps, rng, lambda candidate: self._look(candidate, rows[:_LOOK]))
        total = 0.0
        for start in range(0, len(rows), self.training.batch):
            part = rows[start : start + self.training.batch]
            total += self._learn(nets, part, len(part) / len(rows), step)
        if self.training.clip:
            self.accelerator.clip_grad_norm_([parameter for parameter in self.model.parameters() if parameter.requires_grad],
                                             self.training.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate_at(step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total / len(nets)

    def _rows(self, step: int) -> list[int]:
        """The examples of a step."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            lengths = [len(tokens) for tokens in self.data.tokens] if isinstance(self.data, Encoded) else [0] * len(self.data)
            self.epoch, self.order = epoch, _shuffled(lengths, self.together, random.Random(f"{self.training.seed} epoch {epoch}"))
        return self.order[place]

    def _learn(self, nets: Sequence[Net], rows: Sequence[int], weight: float, step: int) -> float:
        """Add the gradients of all networks on a batch, times a weight; the sum of their losses, times the same."""
        given, targets = self._given(rows)
        if noise := getattr(self.strategy, "noise", 0.0):
            given["input_ids"], same = garbled(given["input_ids"], given.get("attention_mask"), noise)
            known = same.repeat_interleave(len(targets) // len(same))  # of text every token is an example
            targets = targets.masked_fill(~known, UNKNOWN)
        with self.words.of(given["input_ids"]):
            return self._added(nets, self._asked(given, rows, nets), given, targets, weight, step)

    def _added(self, nets: Sequence[Net], said: Tensor | None, given: dict[str, Any], targets: Tensor, weight: float, step: int) -> float:
        total = 0.0
        for net in nets:
            with self._worn(net.candidate):
                with self.accelerator.autocast():
                    logits = self._logits(self.model, given)
                loss = task_loss(logits, targets) if net.temperature is None else distilled_loss(
                    logits, said, targets, net.temperature)  # type: ignore[arg-type]
                if self.streams:
                    loss = loss + self.strategy.hidden * self.streams.apart(given.get("attention_mask"))  # type: ignore[attr-defined]
                value = loss.item()
                if not math.isfinite(value):
                    raise TrainingError(f"training: the loss of {net.candidate or 'the dense model'} is {value} in step {step + 1} of "
                                        f"{self.steps}. Use a lower rate, clip the gradient, or compute in float32.")
                if loss.requires_grad:  # a network may be without anything that is trained: all adapters are in what it lacks
                    self.accelerator.backward(loss * weight)
            if said is None and net.candidate is None:
                said = logits.detach()
            total += value * weight
            self.history.passes += 1
        return total

    def _asked(self, given: dict[str, Any], rows: Sequence[int], nets: Sequence[Net]) -> Tensor | None:
        """What the teacher says, if it has to be asked: the dense model, where it is trained before others, says it by the way."""
        if all(net.temperature is None for net in nets):
            return None
        if isinstance(self.teacher, Tensor):
            return self.teacher[list(rows)].to(self.device)
        with torch.no_grad(), self.accelerator.autocast():
            if self.teacher is not None:
                with evaluating(self.teacher):
                    return self._logits(self.teacher, given)
            if self.adapters is not None:
                with evaluating(self.model), without(self.adapters):
                    return self._logits(self.model, given)
            return None if nets[0] == Net() else self._logits(self.model, given)

    @torch.no_grad()
    def _look(self, candidate: Candidate, rows: Sequence[int]) -> float:
        self.history.looks += 1
        given, targets = self._given(rows)
        with evaluating(self.model), self._worn(candidate), self.accelerator.autocast():
            value = float(task_loss(self._logits(self.model, given), targets))
        return value if math.isfinite(value) else math.inf

    def _worn(self, candidate: Candidate | None) -> Any:
        return nullcontext() if candidate is None else self.genome.worn(self.model, candidate)

    def _given(self, rows: Sequence[int]) -> tuple[dict[str, Any], Tensor]:
        """What the model is called with, and what it should say."""
        if isinstance(self.data, Encoded):
            return self.data.batch(rows, self.device), self.data.targets[list(rows)].to(self.device)
        tokens = self.data[list(rows)].to(self.device)
        return {"input_ids": tokens, "use_cache": False}, tokens[:, 1:].flatten()

    def _logits(self, model: Any, given: dict[str, Any]) -> Tensor:
        """One row per example; of text, per token that is predicted."""
        logits: Tensor = model(**given).logits
        return logits if isinstance(self.data, Encoded) else logits[:, :-1].flatten(0, 1)

    def _keep(self, folder: Path, identity: str) -> None:
        """Write all that is needed to go on, and then delete what was kept before."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                tensors[f"weight {name}"] = parameter.detach().contiguous()
                tensors |= {f"{key} {name}": value.contiguous() for key, value in self.optimizer.state.get(parameter, {}).items()}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}
        file = folder / f"step-{self.history.step:08}.safetensors"
        keep_tensors(file, tensors, identity=identity, scaler=scaler, history=asdict(self.history))
        for old in folder.glob("step-*"):
            if not old.name.startswith(file.name):
                old.unlink()

    def _recall(self, last: int, folder: Path, identity: str) -> None:
        """Put back what was kept last, up to a step, and is whole. Raises RecipeError when it is of another training."""
        from safetensors.torch import load_file

        for file in sorted(folder.glob("step-*.safetensors"), reverse=True):
            if (note := intact(file)) is None:
                continue
            if note["identity"] != identity:
                raise RecipeError(f"{folder}: holds another training (other model, space, strategy, settings or examples). Choose another "
                                  "folder, or delete it.")
            if note["history"]["step"] > last:
                continue
            self.history = _History(**note["history"])
            tensors = load_file(file)
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.data.copy_(tensors.pop(f"weight {name}"))
                    self.optimizer.state[parameter] = {key.removesuffix(f" {name}"): value.to(self.device)
                                                       for key, value in tensors.items() if key.endswith(f" {name}")}
            if note["scaler"]:
                self.accelerator.scaler.load_state_dict(note["scaler"])
            return


def _shuffled(lengths: Sequence[int], together: int, rng: random.Random) -> list[list[int]]:
    """Examples in a random order, so many at a time; of every few steps those of like length go together, so that little is padding."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = _ALIKE * together
    for start in range(0, len(order), window):
        order[start : start + window] = sorted(order[start : start + window], key=lambda row: lengths[row])
    steps = [order[start : start + together] for start in range(0, len(order), together)]
    last = [steps.pop()] if len(steps[-1]) < together else []
    rng.shuffle(steps)
    return steps + last
