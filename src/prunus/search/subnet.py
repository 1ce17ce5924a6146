"""The dense model with other weights in some of its matrices, for as long as it is looked at."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["subnet"]


@contextmanager
def subnet(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """`weights` by module path, in each module's own layout and dtype: the modules point to them, nothing is copied.

    Whatever happens inside, the model has its own weights back afterwards, the very same memory.
    """
    parameters: dict[str, Any] = {name: model.get_submodule(name).weight for name in weights}
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, weight in weights.items():
            parameters[name].data = weight
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]
