"""What recoveries that train what is kept have in common: what they train on, and in which precision."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from ..errors import RecipeError
from ..sites import Anatomy
from .placement import Placement
from .repair import LeastSquares

__all__ = ["check_sequences", "parted", "precise", "two_groups"]

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


def parted(groups: Sequence[slice]) -> tuple[list[slice], list[slice]]:
    """What is trained on, and an eighth that is not."""
    apart = list(groups[::_HELD_OUT])
    return [rows for rows in groups if rows not in apart], apart


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
