"""A model ready to be trained, in all its weights or in low-rank adapters beside them, and afterwards itself again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .errors import MissingExtra, RecipeError
from .traits import classifies

__all__ = ["accelerated", "dropping", "trainable", "without"]

_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # Accelerate's names


@contextmanager
def trainable(model: Any, rank: int, alpha: float, matrices: Sequence[str]) -> Iterator[Any]:
    """What is trained asks for its gradient and is in float32, whatever the model's dtype is; nothing else asks.

    With rank 0 these are all weights, and None is yielded; else adapters (LoRA, Hu et al. 2022) of the matrices at some paths, which
    are yielded, and the head of a model that has one. Paths of modules stay as they are. Afterwards the adapters are added to their
    matrices, or dropped when something went wrong, and every weight has its own dtype again. Raises MissingExtra.
    """
    before = [(name, parameter, parameter.dtype, parameter.requires_grad) for name, parameter in model.named_parameters()]
    with _adapted(model, rank, alpha, matrices) as adapters:
        for name, parameter, _, _ in before:
            parameter.requires_grad_(not rank or (classifies(model) and not name.startswith(f"{model.base_model_prefix}.")))
        for parameter in model.parameters():
            parameter.grad = None  # of whatever was done before
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        try:
            yield adapters
        finally:
            for _, parameter, dtype, asked in before:
                parameter.grad = None
                parameter.data = parameter.data.to(dtype)
                parameter.requires_grad_(asked)


@contextmanager
def _adapted(model: Any, rank: int, alpha: float, matrices: Sequence[str]) -> Iterator[Any]:
    """Adapters in the model, for as long as they are trained; None with rank 0."""
    if not rank:
        yield None
        return
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError:
        raise MissingExtra("LoRA", "train") from None
    conv = type(model.get_submodule(matrices[0])).__name__ == "Conv1D"
    adapters: Any = LoraModel(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(matrices), fan_in_fan_out=conv), "default")
    try:
        yield adapters
    except BaseException:
        adapters.unload()
        raise
    adapters.merge_and_unload()


@contextmanager
def dropping(model: Any, dropout: bool) -> Iterator[None]:
    """The model with its dropout or without, for the duration."""
    before = model.training
    model.train(dropout)
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def accelerated(precision: str, device: torch.device) -> Iterator[Any]:
    """Accelerate, for one process; its global state, which may be another library's, is put back as it was. Raises MissingExtra, and
    RecipeError for a precision that the device does not train in."""
    if precision == "float16" and device.type == "cpu":
        raise RecipeError("training.precision = 'float16': CPUs do not train in it. Use bfloat16 or float32.")
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError:
        raise MissingExtra("training", "train") from None
    states: list[dict[str, Any]] = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    theirs = [dict(state) for state in states]
    try:
        for state in states:
            state.clear()
        try:
            accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=_PRECISIONS[precision])
        except ValueError as error:
            raise RecipeError(f"training.precision = '{precision}': {str(error).splitlines()[0]}") from None
        yield accelerator
    finally:
        for state, before in zip(states, theirs, strict=True):
            state.clear()
            state.update(before)


@contextmanager
def without(adapters: Any) -> Iterator[None]:
    """The model as it was before its adapters, for the duration."""
    adapters.disable_adapter_layers()
    try:
        yield
    finally:
        adapters.enable_adapter_layers()
