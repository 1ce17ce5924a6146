"""Prunus makes language models smaller and faster by pruning, and proves what that cost."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .anatomy import describe
    from .budget import Budget
    from .calibration.sample import Calibration
    from .errors import PrunusError
    from .export.huggingface import save
    from .granularity import NM, Columns, Tile, Unstructured
    from .loading import load
    from .pipeline import allocate, prune
    from .recipe import Recipe, Stage

__version__ = "0.1.0"

_HOMES = {
    "prune": "pipeline", "allocate": "pipeline", "describe": "anatomy", "load": "loading", "save": "export.huggingface",
    "Recipe": "recipe", "Stage": "recipe", "Budget": "budget", "Calibration": "calibration.sample",
    "NM": "granularity", "Unstructured": "granularity", "Tile": "granularity", "Columns": "granularity",
    "PrunusError": "errors",
}

__all__ = [
    "NM", "Budget", "Calibration", "Columns", "PrunusError", "Recipe", "Stage", "Tile", "Unstructured",
    "allocate", "describe", "load", "prune", "save",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import prunus` and `prunus --help` do not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prunus' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"prunus.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
