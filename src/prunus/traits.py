"""What many parts ask of a model of transformers, and of the device that it is on."""

import inspect
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["classifies", "model_bytes", "module_layout", "most_precise", "owned_rows", "padding_of", "parameters_of", "predicts_next",
           "total", "uncached", "weight_norms"]


def predicts_next(model: Any) -> bool:
    """Whether it says which token comes next; an encoder does not."""
    return bool(getattr(model, "can_generate", lambda: False)())


def uncached(model: Any) -> dict[str, bool]:
    """What a pass is given so that no keys and values are kept: a decoder keeps them whatever its head answers."""
    return {"use_cache": False} if predicts_next(model) or "use_cache" in inspect.signature(model.forward).parameters else {}


def classifies(model: Any) -> bool:
    """Whether it has a head that answers for a whole sequence: with a class, or with a number."""
    return "ForSequenceClassification" in type(model).__name__


def padding_of(tokenizer: Any) -> int:
    """The token that fills up short sequences."""
    known = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    return next((token for token in known if token is not None), 0)


def parameters_of(model: Any) -> int:
    """Its weights; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weight_norms(model: Any, dtype: torch.dtype | None = None) -> list[str]:
    """Of every parameter, rounded to `dtype` first where one is said, to eight digits, of which rounding on another device changes none:
    other weights have others."""
    rounded = (weight.detach().to(dtype) for weight in model.parameters())
    return [f"{torch.linalg.vector_norm(weight, dtype=most_precise(weight.device)):.7e}" for weight in rounded]


def model_bytes(model: Any) -> int:
    """The size of its weights in memory or on disk; tied ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def module_layout(module: Any, value: Tensor) -> Tensor:
    """(out, in) as the module stores its weight, and back."""
    return value.T if type(module).__name__ == "Conv1D" else value


def most_precise(device: torch.device) -> torch.dtype:
    """The widest numbers that a device computes with."""
    return torch.float32 if device.type == "mps" else torch.float64


def total(values: Tensor) -> float:
    """The sum of all, in the widest numbers of their device."""
    return float(values.sum(dtype=most_precise(values.device)))


def owned_rows(channels: Int[Tensor, "channels"], each: int, offset: int) -> Int[Tensor, "rows"]:
    """The rows of a matrix that make some channels: channel c has `each` of them, from offset + c * each on."""
    return (offset + channels[:, None] * each + torch.arange(each)).flatten()
