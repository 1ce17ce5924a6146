"""The dense model and what has become of it, side by side, block by block on the same text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..silence import silenced
from ..sites import Anatomy, Block, SublayerSite
from ..subnet import subnet
from .blocks import States, enter, evaluating
from .placement import Placement
from .reselection import Masked

__all__ = ["Dense", "Place", "Watch", "advance", "places", "stream_behind", "unwatched", "watched"]

_Item = TypeVar("_Item")
Watch = Callable[[str, int, int], None]  # a phase, what is done of it, the total


def unwatched(phase: str, done: int, total: int) -> None:
    """Nobody is told."""


def watched(items: Sequence[_Item], phase: str, tell: Watch) -> Iterator[_Item]:
    """The items; `tell` is told when it begins, and of each when it is done with."""
    tell(phase, 0, len(items))
    for done, item in enumerate(items, 1):
        yield item
        tell(phase, done, len(items))


@dataclass(frozen=True)
class Place:
    """A block of the pruned model, and what the dense model's stream is there."""

    depth: int
    block: Block
    kept: Sequence[SublayerSite]  # its branches that stay
    aims: Float[Tensor, "kept samples length width"]  # the dense model's stream behind each of them; behind none where nobody asked
    after: Float[Tensor, "samples length width"]  # and behind the block
    pruned: States  # at the entry of the block, in the pruned model as it is by then
    masked: Mapping[str, Masked] = field(default_factory=dict)  # by path, its matrices that lost single weights; if anybody asked


def places(model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
           tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched,
           branches: bool = True) -> Iterator[Place]:
    """Every block from the first one on that lost anything, in the order of the forward pass, and on the placement's device. Whatever is
    changed in a block before the next one is asked for is in the stream that enters that one.

    `dense` are the parameters, by name, that have other values now than in the dense model, with those of the dense model. `branches` is
    whether anybody asks for the stream behind single branches. Raises CalibrationError when a stream is not finite.
    """
    changed = [{name: value for name, value in dense.items() if name.startswith(f"{block.name}.")} for block in anatomy.blocks]
    depths = {site.block for site in gone} | {depth for depth, values in enumerate(changed) if values}
    if not depths:
        return
    first = min(depths)
    with evaluating(model), ExitStack() as stack:
        whole = enter(model, anatomy, tokens, placement, batch, stack)
        for depth, block in enumerate(anatomy.blocks[:first]):
            advance(model, block, depth, whole, (), placement)
        hidden = stack.enter_context(placement.hidden(tuple(whole.hidden.shape), whole.hidden.dtype))
        pruned = States(hidden.copy_(whole.hidden), whole.batch, whole.device, whole.arguments)
        for depth, block in enumerate(anatomy.blocks[first:], first):
            kept = [branch for branch in block.branches if branch not in gone]
            with placement.hidden((len(kept) if branches else 0, *whole.hidden.shape), whole.hidden.dtype) as aims:
                with subnet(model, changed[depth]):
                    pass_through(model, block, depth, whole, kept if branches else (), aims, placement)
                with placement.visiting(model.get_submodule(block.name)):
                    yield Place(depth, block, kept, aims, whole.hidden, pruned)
            advance(model, block, depth, pruned, gone, placement)
            watch("repairing blocks", depth + 1 - first, len(anatomy.blocks) - first)


class Dense:
    """The dense model's stream beside a model that is pruned block by block: it goes through every block before that one is pruned.

    Holds samples x length x width numbers, and as many for every branch of a block where `branches` are asked for.
    """

    def __init__(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int,
                 branches: bool, stack: ExitStack) -> None:
        self._model, self._blocks, self._placement, self._branches = model, anatomy.blocks, placement, branches
        self._states = enter(model, anatomy, tokens, placement, batch, stack)
        most = max(len(block.branches) for block in anatomy.blocks) if branches else 0
        shape = (most, *self._states.hidden.shape)
        self._aims = stack.enter_context(placement.hidden(shape, self._states.hidden.dtype))

    @property
    def hidden(self) -> Float[Tensor, "samples length width"]:
        """The stream where it is."""
        return self._states.hidden

    def through(self, depth: int) -> None:
        """A block, which is dense still. Raises CalibrationError when the stream is not finite."""
        block = self._blocks[depth]
        pass_through(self._model, block, depth, self._states, block.branches if self._branches else (), self._aims, self._placement)

    def place(self, depth: int, pruned: States, masked: Mapping[str, Masked]) -> Place:
        """Of the block that the stream went through last, with the pruned model's states at its entry."""
        block = self._blocks[depth]
        return Place(depth, block, block.branches, self._aims, self._states.hidden, pruned, masked)


def pass_through(model: Any, block: Block, depth: int, dense: States, branches: Sequence[SublayerSite],
                 aims: Float[Tensor, "kept samples length width"], placement: Placement) -> None:
    """The dense model's stream behind some branches of a block, into `aims`, and through the block."""
    with placement.visiting(model.get_submodule(block.name)):
        for branch, aim in zip(branches, aims, strict=False):  # a block may have fewer branches than the widest
            stream_behind(model, block, branch, dense, aim)
    advance(model, block, depth, dense, (), placement)


def advance(model: Any, block: Block, depth: int, states: States, gone: Sequence[SublayerSite], placement: Placement) -> None:
    """Through one block, without the branches that go."""
    module: nn.Module = model.get_submodule(block.name)
    with placement.visiting(module), silenced(model, [branch for branch in block.branches if branch in gone]):
        states.advance(module, depth, block.name)


def stream_behind(model: Any, block: Block, branch: SublayerSite, dense: States, target: Tensor) -> None:
    """The dense model's stream behind a branch, from its states at the entry of the branch's block."""
    module: nn.Module = model.get_submodule(block.name)
    with silenced(model, block.later(branch)):
        for rows in dense.batches():
            target[rows] = dense.run(module, branch.block, rows).to(target.device)
