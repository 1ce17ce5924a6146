"""A model without some of its branches or channels, for as long as it is looked at."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import linear

from .shape import Nothing, put, reshape
from .sites import ChannelSite, SublayerSite
from .traits import module_layout, owned_rows

__all__ = ["gated", "silenced", "sliced"]


@contextmanager
def silenced(model: nn.Module, branches: Sequence[SublayerSite]) -> Iterator[None]:
    """Of `branches` nothing is computed; the model has its own modules back afterwards, whatever happens inside."""
    silent = {part.module: part.gives for site in branches for part in site.silent}
    before = {path: model.get_submodule(path) for path in (*silent, *(norm for site in branches for norm in site.norms))}
    try:
        for path in before:
            put(model, path, Nothing(silent[path]) if path in silent else nn.Identity())
        yield
    finally:
        for path, module in before.items():
            put(model, path, module)


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """What the matrices at some paths read is multiplied, column by column: by 1, or by 0 where a channel is gone."""
    with ExitStack() as stack:
        for path, gate in gates.items():
            module: Any = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(_Gate(gate.to(module.weight))).remove)
        yield


class _Gate:
    """Multiplies what a matrix reads; of one that is sliced, what is left of it."""

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def __call__(self, module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        part = module.__dict__.get("forward")
        columns = part.columns if isinstance(part, _Part) else None
        return (given[0] * (self.factor if columns is None else self.factor[columns]),)


@contextmanager
def sliced(model: Any, kept: Mapping[ChannelSite, Bool[Tensor, "channels"]]) -> Iterator[None]:
    """Of some sites only the channels that are kept (one at least) are computed, forwards and backwards; gradients reach the model's
    own parameters. Every matrix copies the part that it needs while it computes, and no longer than a gradient needs it.

    Where a matrix is not a plain one (adapters, quantised weights), what is read of channels that go is 0 instead.
    """
    gates: dict[str, Tensor] = {}
    parts: dict[str, _Part] = {}
    sizes: dict[str, dict[str, int]] = {}
    for site, mask in kept.items():
        if bool(mask.all()):
            continue
        columns = mask.repeat_interleave(site.width)
        names = set(site.matrices)
        if names & parts.keys() or not all(_plain(model.get_submodule(name)) for name in names):
            gates[site.consumer] = columns
            continue
        channels = mask.nonzero().flatten()
        rows: dict[str, list[Tensor]] = {}
        for producer in site.producers:
            rows.setdefault(producer.name, []).append(owned_rows(channels, producer.rows, producer.offset))
        parts |= {name: _Part(model.get_submodule(name), rows=torch.cat(owned).sort().values) for name, owned in rows.items()}
        parts[site.consumer] = _Part(model.get_submodule(site.consumer), columns=columns.nonzero().flatten())
        for size in site.counted:
            sizes.setdefault(size.module, {})[size.name] = size.each * len(channels)
    with ExitStack() as stack:
        for path, values in sizes.items():
            stack.enter_context(_same_again(model.get_submodule(path), {name.partition(".")[0] for name in values}))
        reshape(model, {"sizes": sizes})
        for part in parts.values():
            part.module.forward = part
            stack.callback(part.module.__dict__.pop, "forward")
        with gated(model, gates):
            yield


class _Part:
    """The forward pass of a matrix of which some rows or columns are left."""

    def __init__(self, module: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
        device = module.weight.device
        self.module = module
        self.rows, self.columns = (None if index is None else index.to(device) for index in (rows, columns))

    def __call__(self, read: Tensor) -> Tensor:
        weight, bias = module_layout(self.module, self.module.weight), self.module.bias
        if self.columns is not None:
            return linear(read, weight.index_select(1, self.columns), bias)
        assert self.rows is not None
        return linear(read, weight.index_select(0, self.rows), None if bias is None else bias.index_select(0, self.rows))


def _plain(module: nn.Module) -> bool:
    """Whether its forward pass is a product with its own weight, and a bias."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


@contextmanager
def _same_again(module: nn.Module, names: set[str]) -> Iterator[None]:
    """Attributes of a module are what they were afterwards."""
    before = {name: getattr(module, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
