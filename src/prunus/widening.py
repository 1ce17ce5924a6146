"""Products in half precision on processors that have no instructions for it: made in float32, which is several times faster there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

__all__ = ["as_it_is", "computed_in", "made_in_float32", "widened"]

_FEW = 16  # rows; for fewer, widening a matrix costs more than it saves
_PART = 1 << 22  # numbers of a matrix that are in float32 at once
_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}


@contextmanager
def widened() -> Iterator[None]:
    """For the duration, or as a decorator: products of matrices in bfloat16 or float16, which processors without AVX-512's or AMX's
    instructions for them make out of single numbers (forward a quarter of the speed of float32, backward a twentieth), are made in float32
    and rounded; and so is attention that a backward pass will come to, which there takes seven times as long.

    That is what such instructions do, up to the order in which they add, so a protocol that says bfloat16 stays true. No weight changes
    its numbers, and what is kept of a linear layer for a backward pass takes as much memory as before; of attention, twice as much.
    Nothing happens on other processors and devices.
    """
    slow = _slow_dtypes()
    if not slow:
        yield
        return
    with _Widened(slow):
        yield


@contextmanager
def as_it_is() -> Iterator[None]:
    """For the duration, or as a decorator, as if nobody had asked for anything: for what is timed."""
    with torch._C.DisableTorchFunction():
        yield


@cache
def _slow_dtypes() -> frozenset[torch.dtype]:
    """Those that the processor has no instructions for; of others than x86 none is believed to be."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of newer PyTorch
    if found.get("architecture") != "x86_64":
        return frozenset()
    return frozenset(dtype for dtype, names in _INSTRUCTIONS.items() if not any(found.get(name) for name in names))


class _Widened(TorchFunctionMode):
    def __init__(self, slow: frozenset[torch.dtype]) -> None:
        super().__init__()
        self.slow = slow

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is scaled_dot_product_attention:
            return _attention(self.slow, *args, **kwargs or {})
        operands = _OPERANDS[func](*args, **kwargs or {}) if func in _OPERANDS else None
        dtype = operands and _rounded_to(*operands)
        if operands is None or dtype not in self.slow:
            return func(*args, **kwargs or {})
        return _Product.apply(*operands, dtype)


_Operands = tuple[Tensor, Tensor, Tensor | None]  # inputs, (out, in) weight, bias
_OPERANDS: dict[Any, Callable[..., _Operands | None]] = {
    torch.nn.functional.linear: lambda input, weight, bias=None: (input, weight, bias),
    torch.addmm: lambda input, mat1, mat2, **other: None if other or input.dim() != 1 else (mat1, mat2.T, input),  # GPT-2's layers
}


def _attention(slow: frozenset[torch.dtype], query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Tensor:
    """In float32 where it is in a slow dtype and a gradient is asked for; forward alone it is as fast as it is, but for single positions
    that look back."""
    dtype, parts = computed_in(query, key, value), (query, key, value, *others)
    asked = torch.is_grad_enabled() and any(isinstance(part, Tensor) and part.requires_grad for part in (*parts, *named.values()))
    if dtype not in slow or not asked:
        return _looking_back(*parts, **named) if query.shape[-2] == 1 else scaled_dot_product_attention(*parts, **named)
    with torch.autocast("cpu", enabled=False):
        found = scaled_dot_product_attention(*map(_wide, parts), **{name: _wide(part) for name, part in named.items()})
    return found.to(dtype)


def _looking_back(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Tensor:
    """Attention of single positions. Heads that share keys and values go as positions of one head, which takes a quarter of the time."""
    if not named.get("enable_gqa") or others or named.get("attn_mask") is not None or named.get("is_causal"):
        return scaled_dot_product_attention(query, key, value, *others, **named)
    together = query.reshape(*key.shape[:-2], -1, query.shape[-1])
    return scaled_dot_product_attention(together, key, value, **{**named, "enable_gqa": False}).reshape(*query.shape[:-1], value.shape[-1])


def _wide(part: Any) -> Any:
    return part.float() if isinstance(part, Tensor) and part.is_floating_point() else part


def _rounded_to(inputs: Tensor, weight: Tensor, _: Tensor | None) -> torch.dtype | None:
    """The dtype of the product of many rows on a processor; none of others."""
    return None if inputs.numel() < _FEW * inputs.shape[-1] else computed_in(inputs, weight)


def made_in_float32(*operands: Tensor) -> bool:
    """Whether products of these are made in float32 on a processor: their own dtype, or one that it has no instructions for."""
    dtype = computed_in(*operands)
    return dtype == torch.float32 or dtype in _slow_dtypes()


def computed_in(*operands: Tensor) -> torch.dtype | None:
    """The dtype in which PyTorch computes with these on a processor; none on another device, and of dtypes that do not go together."""
    dtypes = {operand.dtype for operand in operands}
    if any(operand.device.type != "cpu" for operand in operands):
        return None
    if torch.is_autocast_enabled("cpu"):
        return None if torch.float64 in dtypes else torch.get_autocast_dtype("cpu")
    return dtypes.pop() if len(dtypes) == 1 else None


class _Product(torch.autograd.Function):
    """A linear layer, of which a backward pass keeps the operands as they are."""

    @staticmethod
    def forward(ctx: Any, inputs: Float[Tensor, "... in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, "out"] | None,
                dtype: torch.dtype) -> Float[Tensor, "... out"]:
        ctx.save_for_backward(inputs, weight)
        found = inputs.new_empty((*inputs.shape[:-1], len(weight)), dtype=dtype)
        with torch.autocast("cpu", enabled=False):
            wide = inputs.float()
            for rows in _parts(weight):
                found[..., rows] = torch.nn.functional.linear(wide, weight[rows].float(), None if bias is None else bias[rows].float())
        return found

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        inputs, weight = ctx.saved_tensors
        first, second, third, _ = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            slope = slopes[0].flatten(0, -2).float()
            back = sum(slope[:, rows] @ weight[rows].float() for rows in _parts(weight)).view_as(inputs) if first else None
            return back, slope.T @ inputs.flatten(0, -2).float() if second else None, slope.sum(0) if third else None, None


def _parts(weight: Float[Tensor, "out in"]) -> Iterator[slice]:
    """Rows of a matrix that are in float32 together."""
    size = max(1, _PART // weight.shape[1])
    return (slice(start, start + size) for start in range(0, len(weight), size))
