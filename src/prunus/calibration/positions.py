"""A block that computes, of some positions alone, what treats all positions alike."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from ..sites import Block, SublayerSite

__all__ = ["at_positions"]


@contextmanager
def at_positions(model: nn.Module, block: Block, branches: Sequence[SublayerSite], length: int,
                 positions: Int[Tensor, "some"]) -> Iterator[None]:
    """Inside, `branches` of a block give at `positions` of its sequences of `length` tokens what they always give, and 0 elsewhere.

    Keys and values are of every position; an MLP, and the matrix behind attention, multiply those that were asked for. So the block's
    output is right at these positions and means nothing at others.
    """
    some = _Some(length, positions)
    with ExitStack() as stack:
        for branch in branches:
            for path in _firsts(block, branch):
                stack.callback(model.get_submodule(path).register_forward_pre_hook(some.enter).remove)
            stack.callback(model.get_submodule(branch.output).register_forward_hook(some.leave).remove)
        yield


def _firsts(block: Block, branch: SublayerSite) -> list[str]:
    """The matrices from which on a branch treats positions alike."""
    if branch.kind == "attention":
        return [branch.output]
    return [site.name for site in block.matrices if site.branch == branch.name and site.name != branch.output]


@dataclass(frozen=True)
class _Some:
    """Positions of sequences. Families give a matrix sequences, or all of their tokens in a row."""

    length: int
    positions: Int[Tensor, "some"]

    def enter(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a matrix reads, at these positions."""
        read: Tensor = given[0]
        some = read.reshape(-1, self.length, read.shape[-1]).index_select(1, self.positions)
        return (some if read.dim() == 3 else some.flatten(0, 1), *given[1:])

    def leave(self, module: nn.Module, given: tuple[Any, ...], gave: Tensor) -> Tensor:
        """What it gave there, among zeros."""
        some = gave.reshape(-1, len(self.positions), gave.shape[-1])
        whole = some.new_zeros(len(some), self.length, some.shape[-1]).index_copy(1, self.positions, some)
        return whole if gave.dim() == 3 else whole.flatten(0, 1)
