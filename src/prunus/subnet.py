"""A model with other values in some of its parameters, for as long as it is looked at."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["subnet"]


@contextmanager
def subnet(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """`values` by name of the parameter, in its own layout and dtype: the parameters point to them, nothing is copied.

    Whatever happens inside, the model has its own values back afterwards, the very same memory.
    """
    parameters = {name: model.get_parameter(name) for name in values}
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, value in values.items():
            parameters[name].data = value
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]
