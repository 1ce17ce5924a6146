"""A block that computes, of some positions alone, what treats all positions alike."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..sites import Block, SublayerSite
from ..widening import computed_in, made_in_float32

__all__ = ["at_positions"]

_TOGETHER = 128  # positions that look back together
_SCORES = 1 << 24  # numbers in a layer's scores, which a backward pass keeps here: 64 MiB in float32


@contextmanager
def at_positions(model: nn.Module, block: Block, branches: Sequence[SublayerSite], length: int,
                 positions: Int[Tensor, "some"]) -> Iterator[None]:
    """Inside, `branches` of a block give at `positions` of its sequences of `length` tokens what they always give, and 0 elsewhere.

    Keys and values are of every position; an MLP, the matrix behind attention and, where a processor makes it in float32, attention itself
    compute those that were asked for. So the block's output is right at these positions and means nothing at others.
    """
    some = _Some(length, positions)
    with ExitStack() as stack:
        for branch in branches:
            for path in _firsts(block, branch):
                stack.callback(model.get_submodule(path).register_forward_pre_hook(some.enter).remove)
            stack.callback(model.get_submodule(branch.output).register_forward_hook(some.leave).remove)
        stack.enter_context(_Looking(some))
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


class _Looking(TorchFunctionMode):
    """Attention of some positions, where a processor makes it in float32: a few together look at all that the last of them can see.
    PyTorch's own computes those of others too, and backward at a third of the speed of products of matrices; but it never keeps the
    scores, nor rounds them where it is in half precision."""

    def __init__(self, some: _Some) -> None:
        super().__init__()
        self.some = some

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return (self._attention if func is scaled_dot_product_attention else func)(*args, **kwargs or {})

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                   is_causal: bool = False, **named: Any) -> Tensor:
        positions, length = self.some.positions, self.some.length
        plain = attn_mask is None and not dropout_p and query.shape[-2] == key.shape[-2] == length
        if not plain or not made_in_float32(query, key, value) or query.shape[:-2].numel() * len(positions) * length > _SCORES:
            return scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **named)
        dtype = computed_in(query, key, value)
        with torch.autocast("cpu", enabled=False):
            query, key, value = query.float(), key.float(), value.float()
            found = torch.cat([_looks(query, key, value, some, is_causal, named.get("scale")) for some in positions.split(_TOGETHER)], -2)
        return found.new_zeros(*query.shape[:-1], value.shape[-1], dtype=dtype).index_copy(-2, positions, found.to(dtype))


def _looks(query: Float[Tensor, "*of heads length size"], key: Float[Tensor, "*of shared length size"],
           value: Float[Tensor, "*of shared length width"], some: Int[Tensor, "some"], causal: bool,
           scale: float | None) -> Float[Tensor, "*of heads some width"]:
    """What `some` positions, in their order, are given; heads that share keys and values go as positions of one head."""
    end = int(some[-1]) + 1 if causal else key.shape[-2]
    asked = query.index_select(-2, some) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = asked.reshape(*key.shape[:-2], -1, key.shape[-1]) @ key[..., :end, :].transpose(-1, -2)
    if causal:
        later = torch.arange(end) > some[:, None]
        scores = scores.view(*asked.shape[:-1], end).masked_fill(later, -torch.inf).view_as(scores)
    return (scores.softmax(-1) @ value[..., :end, :]).view(*asked.shape[:-1], value.shape[-1])
