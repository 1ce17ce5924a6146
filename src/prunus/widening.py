"""Matrices in bfloat16 on processors that have no instructions for it: multiplied in float32, which is several times faster there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["as_it_is", "widened"]

_FEW = 16  # rows; for fewer, widening a matrix costs more than it saves
_PART = 1 << 22  # numbers of a matrix that are in float32 at once


@contextmanager
def widened() -> Iterator[None]:
    """For the duration, or as a decorator: products of matrices in bfloat16, which processors without AVX512-BF16 or AMX make out of
    single numbers (forward a quarter of the speed of float32, backward a twentieth), are made in float32 and rounded.

    That is what such instructions do, up to the order in which they add, so a protocol that says bfloat16 stays true. No weight changes
    its numbers, and what is kept for a backward pass takes as much memory as before. Nothing happens on other processors and devices.
    """
    if _knows_bfloat16():
        yield
        return
    with _Widened():
        yield


@contextmanager
def as_it_is() -> Iterator[None]:
    """For the duration, or as a decorator, as if nobody had asked for anything: for what is timed."""
    with torch._C.DisableTorchFunction():
        yield


@cache
def _knows_bfloat16() -> bool:
    """Whether the processor multiplies numbers in bfloat16; of others than x86 that is believed."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of newer PyTorch
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class _Widened(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        operands = _OPERANDS[func](*args, **kwargs or {}) if func in _OPERANDS else None
        if operands is None or not _slow(*operands):
            return func(*args, **kwargs or {})
        return _Product.apply(*operands)


_Operands = tuple[Tensor, Tensor, Tensor | None]  # inputs, (out, in) weight, bias
_OPERANDS: dict[Any, Callable[..., _Operands | None]] = {
    torch.nn.functional.linear: lambda input, weight, bias=None: (input, weight, bias),
    torch.addmm: lambda input, mat1, mat2, **other: None if other or input.dim() != 1 else (mat1, mat2.T, input),  # GPT-2's layers
}


def _slow(inputs: Tensor, weight: Tensor, _: Tensor | None) -> bool:
    """Whether many rows would be multiplied in bfloat16 by a processor."""
    if inputs.device.type != "cpu" or inputs.numel() < _FEW * inputs.shape[-1]:
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        return torch.float64 not in (inputs.dtype, weight.dtype)  # as autocast does
    return inputs.dtype == weight.dtype == torch.bfloat16


class _Product(torch.autograd.Function):
    """A linear layer, of which a backward pass keeps the operands as they are."""

    @staticmethod
    def forward(ctx: Any, inputs: Float[Tensor, "... in"], weight: Float[Tensor, "out in"],
                bias: Float[Tensor, "out"] | None) -> Float[Tensor, "... out"]:
        ctx.save_for_backward(inputs, weight)
        found = inputs.new_empty((*inputs.shape[:-1], len(weight)), dtype=torch.bfloat16)
        with torch.autocast("cpu", enabled=False):
            wide, size = inputs.float(), max(1, _PART // weight.shape[1])
            for start in range(0, len(weight), size):
                rows = slice(start, start + size)
                found[..., rows] = torch.nn.functional.linear(wide, weight[rows].float(), None if bias is None else bias[rows].float())
        return found

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        inputs, weight = ctx.saved_tensors
        first, second, third = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            slope, size = slopes[0].flatten(0, -2).float(), max(1, _PART // weight.shape[1])
            into = [slice(start, start + size) for start in range(0, len(weight), size)]
            back = sum(slope[:, rows] @ weight[rows].float() for rows in into).view_as(inputs) if first else None
            return back, slope.T @ inputs.flatten(0, -2).float() if second else None, slope.sum(0) if third else None
