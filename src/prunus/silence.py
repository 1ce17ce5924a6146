"""A model without some of its branches, for as long as it is looked at."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from .shape import Nothing, put
from .sites import SublayerSite

__all__ = ["silenced"]


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
