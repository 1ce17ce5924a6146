"""Write a solution into a module."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..problem import LayerSolution
from ..sites import ChannelSite, Producer
from ..traits import module_layout, owned_rows

__all__ = ["clear_rows", "module_layout", "read_weight", "reorder", "write"]


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


@torch.no_grad()
def reorder(model: nn.Module, site: ChannelSite, order: Int[Tensor, "parts channels"]) -> None:
    """Put the consumer's inputs in another order within every part, and give them in it: outputs change by rounding alone.

    Rows of what makes them move with their biases: of an MLP in all producers, of attention those of values, the last of each group.
    """
    parts, channels, reads = site.parts
    order = order.cpu()
    for producer in site.producers if site.width == 1 else site.producers[-1:]:
        each = producer.rows * site.count // parts
        first = producer.offset + torch.arange(1, parts + 1) * each - channels
        rows = (first[:, None] + torch.arange(channels)).flatten()
        module: Any = model.get_submodule(producer.name)
        _move(module_layout(module, module.weight), rows, (first[:, None] + order).flatten())
        if module.bias is not None:
            _move(module.bias, rows, (first[:, None] + order).flatten())
    consumer: Any = model.get_submodule(site.consumer)
    columns = (torch.arange(parts * reads).view(parts, reads, 1) * channels + order[:, None]).flatten()
    _move(module_layout(consumer, consumer.weight).T, torch.arange(len(columns)), columns)


def _move(values: Tensor, to: Int[Tensor, "rows"], rows: Int[Tensor, "rows"]) -> None:
    values[to.to(values.device)] = values[rows.to(values.device)]
