"""Anatomy: which places of a model can give up weights. One file per `model_type`; the file name is the type.

A family file holds one function, `family(config) -> Anatomy`, with module paths relative to the base model
(`AutoModel`). No module is imported and no tensor touched.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import LoadError, UnknownName
from ..lookup import find, names
from ..sites import Anatomy, LinearSite, shaped

__all__ = ["describe", "weight_shape"]


def describe(model: nn.Module) -> Anatomy:
    """The anatomy of a transformers model, found by its config's `model_type`, with paths from the model itself.

    Raises LoadError when the architecture is unknown or the model's modules are not as its family says.
    """
    config: Any = model.config
    try:
        family: Callable[[Any], Anatomy] = find("anatomy", config.model_type)
    except UnknownName:
        raise LoadError(f"architecture '{config.model_type}' is unknown. Known: {', '.join(names('anatomy'))}. "
                        "A new family is one file: docs/guides/add-a-model-family.md.") from None
    anatomy = family(config)
    if getattr(model, "base_model", model) is not model:
        anatomy = anatomy.below(f"{model.base_model_prefix}.")
    anatomy = shaped(anatomy, getattr(config, "pruned", None) or {})
    for site in anatomy.sites("linear"):
        assert isinstance(site, LinearSite)
        _check(model, site)
    return anatomy


def _check(model: Any, site: LinearSite) -> None:
    try:
        found = weight_shape(model.get_submodule(site.name))
    except AttributeError:
        raise LoadError(f"{site.name}: no such matrix, though a '{model.config.model_type}' has it. "
                        "Was the model changed after it was built?") from None
    if found != site.shape:
        raise LoadError(f"{site.name}: found shape {found}, expected {site.shape} from the config.")


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear module; transformers' Conv1D stores its weight as (in, out)."""
    weight: Any = module.weight
    first, second = weight.shape
    return (second, first) if type(module).__name__ == "Conv1D" else (first, second)
