"""A model without some of its branches or channels, for as long as it is looked at."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .shape import Nothing, put
from .sites import SublayerSite

__all__ = ["gated", "silenced"]


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
            factor = gate.to(module.weight)
            stack.callback(module.register_forward_pre_hook(lambda _, given, factor=factor: (given[0] * factor,)).remove)
        yield
