"""Presets: what is composed for how much effort, by what is pruned."""

from collections.abc import Mapping
from typing import Any

from .errors import RecipeError, nearest
from .granularity import NM, Granularity

__all__ = ["EFFORTS", "preset", "writes"]

_BY_LOSS = {"name": "ranking", "criterion": "taylor", "standardise": False}
_BLOCKS = {"name": "reconstruct", "epochs": 2}  # of text, and of what the model writes beside it
_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {
        "linear": {"solver": "sparsegpt"},
        "channel": {"solver": {"name": "refit", "criterion": "taylor"}, "allocation": _BY_LOSS},
        "sublayer": {"allocation": "influence", "recovery": "patch"},
    },
    "balanced": {
        "linear": {"solver": "alps", "recovery": {"name": "distill", "share": 0.3, "first": {**_BLOCKS, "positions": 0.5}}},
        "channel": {"solver": {"name": "refit", "criterion": "taylor"}, "allocation": _BY_LOSS, "recovery": "patch"},
        "sublayer": {"allocation": "influence", "search": {"strategy": "progressive"}, "recovery": "patch"},
    },
    "best": {
        "linear": {"solver": "alps", "allocation": "fisher", "recovery": {"name": "distill", "first": _BLOCKS}},
        "channel": {"solver": {"name": "refit", "criterion": "taylor"}, "allocation": _BY_LOSS, "recovery": "distill"},
        "sublayer": {"allocation": "influence", "search": {"strategy": "progressive"}, "recovery": "distill"},
    },
}
_WRITING = {"balanced": 1 / 6, "best": 1.0}  # efforts that train matrices on more text than there is: what share of it the model writes
EFFORTS = tuple(_PRESETS)


def preset(effort: Any, kind: str, granularity: Granularity) -> Mapping[str, Any]:
    """Fields of a stage as plain data. n:m says how much every matrix gives, so that no allocation goes with it. Raises RecipeError."""
    if effort not in EFFORTS:
        raise RecipeError(f"effort = {effort!r}: expected one of {', '.join(EFFORTS)}{nearest(str(effort), list(EFFORTS))}")
    found = _PRESETS[effort].get(kind, {})
    return {key: value for key, value in found.items() if key != "allocation"} if isinstance(granularity, NM) else found


def writes(effort: Any, kinds: Any) -> float:
    """How much calibration text the model itself writes, as a share of what it is given, unless something else is said."""
    return _WRITING[effort] if isinstance(kinds, list | tuple) and "linear" in kinds and effort in list(_WRITING) else 0.0
