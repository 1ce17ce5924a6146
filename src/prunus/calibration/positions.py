"""A block that computes, of some positions alone, what treats all positions alike."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from ..sites import Block, LinearSite, SublayerSite

__all__ = ["at_positions"]


@contextmanager
def at_positions(model: nn.Module, block: Block, branches: Sequence[SublayerSite], length: int,
                 positions: Int[Tensor, "some"]) -> Iterator[None]:
    """Inside, `branches` of a block give at `positions` of its sequences of `length` tokens what they always give, and 0 elsewhere.

    Keys and values are of every position; an MLP, and the matrix behind attention, multiply those that were asked for. So the block's
    output is right at these positions and means nothing at others.
    """
    with ExitStack() as stack:
        for branch in branches:
            for path in _firsts(block, branch):
                stack.callback(model.get_submodule(path).register_forward_pre_hook(_Enter(length, positions)).remove)
            stack.callback(model.get_submodule(branch.output).register_forward_hook(_Leave(length, positions)).remove)
        yield


def _firsts(block: Block, branch: SublayerSite) -> list[str]:
    """The matrices from which on a branch treats positions alike."""
    if branch.kind == "attention":
        return [branch.output]
    return [site.name for site in block.sites if isinstance(site, LinearSite) and site.branch == branch.name and site.name != branch.output]


class _Enter:
    """What a matrix reads, at some positions. Families give it sequences, or all of their tokens in a row."""

    def __init__(self, length: int, positions: Tensor) -> None:
        self.length, self.positions = length, positions

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        read: Tensor = given[0]
        some = read.reshape(-1, self.length, read.shape[-1]).index_select(1, self.positions)
        return (some if read.dim() == 3 else some.flatten(0, 1), *given[1:])


class _Leave:
    """What a matrix gave at some positions, among zeros."""

    def __init__(self, length: int, positions: Tensor) -> None:
        self.length, self.positions = length, positions

    def __call__(self, module: nn.Module, given: Any, gave: Tensor) -> Tensor:
        some = gave.reshape(-1, len(self.positions), gave.shape[-1])
        whole = some.new_zeros(len(some), self.length, some.shape[-1]).index_copy(1, self.positions, some)
        return whole if gave.dim() == 3 else whole.flatten(0, 1)
