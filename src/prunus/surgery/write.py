"""Write a solution into a module."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..problem import LayerSolution
from ..sites import Producer
from ..traits import module_layout, owned_rows

__all__ = ["clear_rows", "module_layout", "read_weight", "write"]


def read_weight(module: Any) -> Tensor:
    """A float32 copy of the weight as (out, in), whatever the module's dtype and layout."""
    return module_layout(module, module.weight.detach()).to(torch.float32, copy=True).contiguous()


@torch.no_grad()
def write(module: Any, solution: LayerSolution) -> None:
    """Put the solution's weight (and bias change, where it has a bias) into the module, in its dtype and layout."""
    module.weight.copy_(module_layout(module, solution.weight))
    if solution.bias is not None and module.bias is not None:
        module.bias.add_(solution.bias.to(module.bias))


@torch.no_grad()
def clear_rows(model: nn.Module, producers: Iterable[Producer], removed: Tensor) -> None:
    """Zero the rows (and biases) that made the removed channels; `removed` holds channel indices."""
    for producer in producers:
        module: Any = model.get_submodule(producer.name)
        rows = owned_rows(removed.cpu(), producer.rows, producer.offset)
        weight = module_layout(module, module.weight)
        weight[rows.to(weight.device)] = 0
        if getattr(module, "bias", None) is not None:
            module.bias[rows.to(module.bias.device)] = 0
