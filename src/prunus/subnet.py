"""A model with other values in some of its parameters, for as long as it is looked at."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import RecipeError

__all__ = ["in_turn", "subnet"]


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


@contextmanager
def in_turn(model: nn.Module, weights: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While a matrix computes, and no longer, its weight is what a function makes of its own, by path: one at a time is held.

    To be looked at, not to be trained: gradients would be of weights that are back before they are computed. Raises RecipeError when it
    computes where gradients are asked for.
    """
    with ExitStack() as stack:
        for path, weight in weights.items():
            module, turn = model.get_submodule(path), _Turn(weight)
            stack.callback(turn.end, module)
            stack.callback(module.register_forward_pre_hook(turn.begin).remove)
            stack.callback(module.register_forward_hook(turn.end).remove)
        yield


class _Turn:
    """Changes a module's weight before it computes, and back."""

    def __init__(self, weight: Callable[[Tensor], Tensor]) -> None:
        self.weight = weight
        self.own: Tensor | None = None

    def begin(self, module: Any, *given: Any) -> None:
        if torch.is_grad_enabled():
            raise RecipeError("weights that a solver has changed have no gradients. Compute without them, or train a space without levels.")
        self.end(module)  # a turn that was interrupted
        self.own = module.weight.data
        module.weight.data = self.weight(self.own)

    def end(self, module: Any, *given: Any) -> None:
        if self.own is not None:
            module.weight.data, self.own = self.own, None
