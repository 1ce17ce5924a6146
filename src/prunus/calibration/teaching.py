"""What recoveries that train what is kept have in common: what they train on, and in which precision."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import RecipeError
from ..sites import Block, SublayerSite
from .reselection import Reselection

__all__ = ["Taught", "check_sequences", "in_small_steps", "keep_best", "matrices_in", "precise", "sizes", "steps_of", "train_kept"]

_HELD_OUT = 8  # of so many groups of sequences one is not trained on
_STEP = 512  # tokens; with twice as many, and so half the steps, a block ends farther from its aim
_PATIENCE = 2  # epochs in a row that may be worse on those than the one before
_DIVERGED = 2.0  # times the error that there was before
_SHARES = (0.05, 0.01)  # of what a mask keeps that is exchanged together: the first of them that helps


@dataclass(frozen=True)
class Taught:
    """What training came to, on the sequences that were not trained on."""

    before: float  # the error, per group of sequences
    after: float  # of the weights that stay; at most `before`
    worst: float  # at the end of an epoch; not finite where training was broken off

    def remarks(self, name: str) -> tuple[str, ...]:
        """Of the training of `name`, what a report has to say: nothing of one that went well."""
        if self.worst <= _DIVERGED * self.before:
            return ()
        kept = "those before it" if self.after >= self.before else "the best it had"
        return (f"{name}: training diverged, to a held-out error of {self.worst:.3g} from {self.before:.3g}; its weights are {kept}, "
                f"with {self.after:.3g}. Lower the rate.",)


def check_sequences(name: str, tokens: Int[Tensor, "samples length"]) -> None:
    """Whether the recovery `name` has some to train on and some to measure on. Raises RecipeError."""
    if len(tokens) < 2:
        raise RecipeError(f"recovery '{name}': {len(tokens)} calibration sequence, of which none would be left to train on. Use more "
                          "(--samples).")


def in_small_steps(tokens: Int[Tensor, "samples length"], batch: int) -> int:
    """How many sequences are trained on together: little text has to be many steps, and two groups at least."""
    return min(batch, max(1, _STEP // tokens.shape[1]), (len(tokens) + 1) // 2)


def matrices_in(model: Any, block: Block, branches: Sequence[SublayerSite]) -> list[nn.Parameter]:
    """Weights and biases of the matrices of some branches of a block."""
    names = {branch.name for branch in branches}
    return [parameter for site in block.matrices if site.branch in names for parameter in model.get_submodule(site.name).parameters()]


def steps_of(groups: Sequence[slice], epochs: int) -> int:
    """How many steps `keep_best` takes, if nothing ends them."""
    return epochs * len(_parted(groups)[0])


def _parted(groups: Sequence[slice]) -> tuple[list[slice], list[slice]]:
    """What is trained on, and an eighth that is not."""
    apart = list(groups[::_HELD_OUT])
    return [rows for rows in groups if rows not in apart], apart


@torch.no_grad()
def train_kept(trained: Sequence[Tensor], groups: Sequence[slice], loss: Callable[[slice], Float[Tensor, ""]], *, epochs: int,
               rates: Sequence[float], rng: random.Random, decay: float = 0.999, step: Callable[[slice], Float[Tensor, ""]] | None = None,
               reselection: Reselection | None = None) -> Taught:
    """Adam, of whose second moment a share `decay` stays; its rate, one for each of `trained`, falls by a cosine. A step descends `step`,
    if that is another estimate of the loss. What is 0 is made 0 again after every step, unless `reselection` says otherwise; where
    everything is 0 there is nothing to do. The weights that stay are those of `keep_best`.
    """
    left = [(parameter, rate) for parameter, rate in zip(trained, rates, strict=True) if bool(parameter.any())]
    steps = _Steps(left, decay, steps_of(groups, epochs), reselection) if left else None
    return keep_best([parameter for parameter, _ in left], groups, lambda rows: float(loss(rows)),
                     lambda rows, held_out: steps is not None and steps.take(step or loss, rows, held_out), epochs, rng)


@torch.no_grad()
def keep_best(trained: Sequence[Tensor], groups: Sequence[slice], loss: Callable[[slice], float],
              step: Callable[[slice, Callable[[], float]], bool], epochs: int, rng: random.Random) -> Taught:
    """A `step` for each group of sequences, but for an eighth of them; it is told how to measure the loss on these, and gives whether its
    own loss was a number.

    After every epoch the loss is added up over the groups that are not trained on; what had the least of it stays in the end, and that
    may be what there was before. Two epochs in a row that were worse than the one before end the training, and so does a loss that is
    no number.
    """
    shown, apart = _parted(groups)

    def held_out() -> float:
        return sum(map(loss, apart)) / len(apart)

    first = least = worst = held_out()
    if not trained:
        return Taught(first, first, first)
    best = [parameter.clone() for parameter in trained]
    idle, last = 0, math.inf  # a high rate may begin with worse weights than there were
    for _ in range(epochs):
        rng.shuffle(shown)
        found = held_out() if all(step(rows, held_out) for rows in shown) else math.nan
        worst = max(worst, found) if math.isfinite(found) else found
        idle = 0 if found < last else idle + 1
        last = found
        if found < least:  # not where it is no number
            least = found
            for value, parameter in zip(best, trained, strict=True):
                value.copy_(parameter)
        if idle == _PATIENCE or not math.isfinite(found):
            break
    for parameter, value in zip(trained, best, strict=True):
        parameter.copy_(value)
    return Taught(first, least, worst)


class _Steps:
    """Adam on weights of which the zeros stay, or are chosen again."""

    def __init__(self, trained: Sequence[tuple[Tensor, float]], decay: float, total: int, reselection: Reselection | None) -> None:
        self._total, self._done = total, 0
        self._trained = [parameter for parameter, _ in trained]
        self._kept = [parameter != 0 for parameter in self._trained]
        self._factors = [kept.to(parameter.dtype) for parameter, kept in zip(self._trained, self._kept, strict=True)]
        self._optimizer = torch.optim.Adam([{"params": [parameter], "lr": rate, "most": rate} for parameter, rate in trained],
                                           betas=(0.9, decay), fused=True)
        self._moments = reselection.moments(total) if reselection else frozenset()
        self._candidates = [(candidate, kept) for candidate in (reselection.candidates if reselection else ())
                            for parameter, kept in zip(self._trained, self._kept, strict=True) if parameter is candidate.weight]

    def take(self, loss: Callable[[slice], Float[Tensor, ""]], rows: slice, held_out: Callable[[], float]) -> bool:
        """One step; whether its loss was a number."""
        if self._done in self._moments:
            self._choose(held_out)
        for group in self._optimizer.param_groups:
            group["lr"] = group["most"] * (1 + math.cos(math.pi * self._done / self._total)) / 2
        with torch.enable_grad():
            found = loss(rows)
            found.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        for candidate, kept in self._candidates:
            candidate.step(kept)
        for parameter, factor in zip(self._trained, self._factors, strict=True):
            parameter.mul_(factor)  # Adam looks at every weight by itself: those that stay do not know what the others would become
        self._done += 1
        return math.isfinite(float(found.detach()))

    def _choose(self, held_out: Callable[[], float]) -> None:
        """Masks again, one matrix after the other; one stays only where the loss on what is not trained on falls with it at once: a
        solver that refits what it keeps had reasons for its choice that a saliency does not know."""
        least = held_out()
        for candidate, kept in self._candidates:
            weight = candidate.weight
            before = weight.clone()
            for share in _SHARES:
                other = candidate.choose(kept, share)
                weight.copy_(torch.where(kept, weight, candidate.values) * other)
                found = held_out()
                if found < least:
                    least = found
                    for state in ("exp_avg", "exp_avg_sq") if weight in self._optimizer.state else ():
                        self._optimizer.state[weight][state].mul_(kept | ~other)
                    kept.copy_(other)
                    break
                weight.copy_(before)
        for factor, kept in zip(self._factors, self._kept, strict=True):
            factor.copy_(kept)


def sizes(trained: Sequence[Tensor]) -> list[float]:
    """Of each, the root mean square of what is not 0: what a rate can be a share of, whatever the scale of a model's weights."""
    return [float((parameter.float().square().sum() / parameter.count_nonzero().clamp_min(1)).sqrt()) for parameter in trained]


@contextmanager
def precise(module: nn.Module, trained: Sequence[nn.Parameter],
            rounded: Callable[[Tensor, torch.dtype], Tensor] = Tensor.to) -> Iterator[None]:
    """Parameters of a module in float32 that ask for their gradient; afterwards as they were, `rounded` to their dtype.

    What else it has in float16 is in float32 as well: products that are made in bfloat16 make float32 of a stream in float16, and a layer
    norm on a processor takes no narrower parameters than what it reads.
    """
    before = [parameter.data for parameter in trained]
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    others = [(parameter, parameter.data) for parameter in module.parameters() if parameter.dtype == torch.float16]
    for parameter, value in others:
        parameter.data = value.float()
    try:
        yield
    finally:
        for parameter, value in others:
            parameter.data = value
        for parameter, value in zip(trained, before, strict=True):
            parameter.grad = None
            value.copy_(rounded(parameter.data, value.dtype))  # where it was: else a model's weights would wander and leave holes
            parameter.data = value
            parameter.requires_grad_(False)
