"""What recoveries that train what is kept have in common: what they train on, and in which precision."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import RecipeError
from ..sites import Anatomy
from .placement import Placement
from .repair import LeastSquares

__all__ = ["check_sequences", "precise", "train_kept", "two_groups"]

_HELD_OUT = 8  # of so many groups of sequences one is not trained on


def check_sequences(name: str, first: bool, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement,
                    batch: int) -> None:
    """Of the recovery `name`, which repairs by least squares first, or not. Raises RecipeError."""
    if first:
        try:
            LeastSquares().check(model, anatomy, tokens, placement, batch)
        except RecipeError as error:
            known = str(error).rpartition(". ")[0]
            raise RecipeError(f"{known}. Train without it first: --recovery {name},first=false.") from None
    if len(tokens) < 2:
        raise RecipeError(f"recovery '{name}': {len(tokens)} calibration sequence, of which none would be left to train on. Use more "
                          "(--samples).")


def two_groups(tokens: Int[Tensor, "samples length"], batch: int) -> int:
    """How many sequences go together so that there are two groups at least."""
    return min(batch, (len(tokens) + 1) // 2)


def _parted(groups: Sequence[slice]) -> tuple[list[slice], list[slice]]:
    """What is trained on, and an eighth that is not."""
    apart = list(groups[::_HELD_OUT])
    return [rows for rows in groups if rows not in apart], apart


@torch.no_grad()
def train_kept(trained: Sequence[Tensor], groups: Sequence[slice], loss: Callable[[slice], Float[Tensor, ""]], *, epochs: int, rate: float,
               rng: random.Random, warmup: float = 0.0, told: Callable[[int, int], None] = lambda done, steps: None) -> None:
    """Adam, a group of sequences a step; its rate grows in a share `warmup` of the steps, and falls by a cosine. What is 0 stays 0.

    After every epoch the loss is added up over the groups that are not trained on; what had the least of it stays in the end, and that
    may be what there was before.
    """
    shown, apart = _parted(groups)
    kept = [parameter != 0 for parameter in trained]
    optimizer = torch.optim.Adam(trained, lr=rate, fused=True)
    best, before = sum(float(loss(rows)) for rows in apart), [parameter.clone() for parameter in trained]
    steps, done = epochs * len(shown), 0
    for _ in range(epochs):
        rng.shuffle(shown)
        for rows in shown:
            grown = min(1.0, (done + 1) / (warmup * steps)) if warmup else 1.0
            optimizer.param_groups[0]["lr"] = rate * grown * (1 + math.cos(math.pi * done / steps)) / 2
            with torch.enable_grad():
                loss(rows).backward()
            for parameter, mask in zip(trained, kept, strict=True):
                if parameter.grad is not None:
                    parameter.grad *= mask
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            told(done, steps)
        found = sum(float(loss(rows)) for rows in apart)
        if found < best:  # not where it is no number
            best, before = found, [parameter.clone() for parameter in trained]
    for parameter, value, mask in zip(trained, before, kept, strict=True):
        parameter.copy_(value * mask)


@contextmanager
def precise(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    """A block's parameters, in float32 and asking for their gradient; afterwards as they were."""
    trained = list(module.parameters())
    dtypes = [parameter.dtype for parameter in trained]
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    try:
        yield trained
    finally:
        for parameter, dtype in zip(trained, dtypes, strict=True):
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(False)
