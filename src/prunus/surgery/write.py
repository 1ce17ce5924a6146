"""Write a solution into a module."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..problem import LayerSolution
from ..sites import Producer

__all__ = ["clear_branch", "clear_rows", "read_weight", "write"]


def read_weight(module: Any) -> Tensor:
    """A float32 copy of the weight as (out, in), whatever the module's dtype and layout."""
    weight = module.weight.detach()
    return (weight.T if _transposed(module) else weight).to(torch.float32, copy=True).contiguous()


@torch.no_grad()
def write(module: Any, solution: LayerSolution) -> None:
    """Put the solution's weight (and bias change) into the module, in its dtype and layout."""
    weight = solution.weight.T if _transposed(module) else solution.weight
    module.weight.copy_(weight)
    if solution.bias is not None:
        module.bias.add_(solution.bias.to(module.bias))


@torch.no_grad()
def clear_rows(model: nn.Module, producers: Iterable[Producer], removed: Tensor) -> None:
    """Zero the rows (and biases) that made the removed channels; `removed` holds channel indices."""
    for producer in producers:
        module: Any = model.get_submodule(producer.name)
        rows = (producer.offset + removed[:, None] * producer.rows + torch.arange(producer.rows)).flatten()
        weight = module.weight.T if _transposed(module) else module.weight
        weight[rows.to(weight.device)] = 0
        if getattr(module, "bias", None) is not None:
            module.bias[rows.to(module.bias.device)] = 0


@torch.no_grad()
def clear_branch(module: Any) -> None:
    """Make a residual branch contribute nothing: zero the matrix (and bias) whose product leaves it."""
    module.weight.zero_()
    if getattr(module, "bias", None) is not None:
        module.bias.zero_()


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
