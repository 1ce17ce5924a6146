"""Plug-ins by name: a file of a plug-in folder is a plug-in, and its file name is its name."""

import importlib
import importlib.util
import pkgutil
from typing import Any

from .errors import UnknownName

__all__ = ["find", "name_of", "names"]


def names(folder: str) -> list[str]:
    """The plug-ins of `folder` (a dotted path below `prunus`), sorted; files with a leading underscore are not."""
    spec = importlib.util.find_spec(f"prunus.{folder}")  # the folder is read, not imported
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return sorted(m.name for m in pkgutil.iter_modules(spec.submodule_search_locations) if not m.name.startswith("_"))


def find(folder: str, name: str) -> Any:
    """The plug-in called `name`: the first public name of its file, or `module:Class` from outside Prunus.

    Raises UnknownName. An error inside the plug-in's own file is raised as it is.
    """
    module, _, attribute = name.partition(":")
    if attribute:
        return _outside(folder, name, module, attribute)
    if name not in names(folder):
        raise UnknownName(folder, name, known=names(folder))
    plugin = importlib.import_module(f"prunus.{folder}.{name}")
    return getattr(plugin, plugin.__all__[0])


def _outside(folder: str, name: str, module: str, attribute: str) -> Any:
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownName(folder, name, known=names(folder)) from error


def name_of(kind: type) -> str:
    """The file name of one of our plug-ins; `module:Class` of one from outside."""
    package, _, file = kind.__module__.rpartition(".")
    return file if package.startswith("prunus.") else f"{kind.__module__}:{kind.__qualname__}"
