"""Give a freshly built model the shape of a pruned one. This file stands alone: checkpoints of pruned models carry its text."""

from typing import Any

import torch
from torch import nn

__all__ = ["PREFIX", "Nothing", "put", "reshape"]

PREFIX = "pruned-"  # of the model_type of a cut model, before its family's


class Nothing(nn.Module):
    """Stands where a branch, or a part of it, was: gives zeros, or what it is given."""

    def __init__(self, gives: str) -> None:
        super().__init__()
        self.gives = gives  # "zeros", "pair" (zeros and None, as attention gives), or "input"

    def forward(self, *given: Any, **named: Any) -> Any:
        hidden = given[0] if given else named["hidden_states"]
        if self.gives == "input":
            return hidden
        zeros = hidden.new_zeros(1).expand_as(hidden)
        return (zeros, None) if self.gives == "pair" else zeros


class Own:
    """The config of the whole model with some values of one module's own."""

    def __init__(self, config: Any, values: dict[str, int]) -> None:
        self.__dict__.update(whole=config, **values)

    def __getattr__(self, name: str) -> Any:
        if "whole" not in self.__dict__:  # while it is copied
            raise AttributeError(name)
        return getattr(self.__dict__["whole"], name)


def reshape(model: Any, shape: dict[str, Any]) -> None:
    """Replace modules in place, by path from the model; new matrices are not filled.

    `shape` has "matrices" (path: [out, in]), "sizes" (path: {attribute: value}), "silent" (path: what it gives), "dropped"
    (paths of norms that nothing needs any more) and "cache" (path of an attention: its place in the cache).
    """
    for path, size in shape.get("matrices", {}).items():
        put(model, path, _sized(model.get_submodule(path), *size))
    for path, values in shape.get("sizes", {}).items():
        module = model.get_submodule(path)
        own = {name.removeprefix("config."): value for name, value in values.items() if name.startswith("config.")}
        if own:
            module.config = Own(model.config, own)
        for name in values.keys() - {f"config.{name}" for name in own}:
            setattr(module, name, values[name])
    for path, gives in shape.get("silent", {}).items():
        put(model, path, Nothing(gives))
    for path in shape.get("dropped", ()):
        put(model, path, nn.Identity())
    for path, place in shape.get("cache", {}).items():
        model.get_submodule(path).layer_idx = place


def put(model: Any, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _sized(old: Any, rows: int, columns: int) -> nn.Module:
    """An empty matrix of another size, of the same kind, dtype and device."""
    with torch.device("meta"):  # nothing is drawn to fill it
        conv = type(old).__name__ == "Conv1D"
        new: Any = type(old)(rows, columns) if conv else nn.Linear(columns, rows, bias=old.bias is not None)
    new = new.to_empty(device=old.weight.device).to(old.weight.dtype)
    for mine, theirs in zip(new.parameters(), old.parameters()):  # noqa: B905
        mine.requires_grad_(theirs.requires_grad)
    built: nn.Module = new.train(old.training)
    return built
