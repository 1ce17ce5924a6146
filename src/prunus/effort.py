"""Presets: what is composed for how much effort, by what is pruned."""

from collections.abc import Mapping
from typing import Any

from .errors import RecipeError, nearest
from .granularity import NM, Granularity

__all__ = ["EFFORTS", "preset", "writes"]

_BY_LOSS = {"name": "ranking", "criterion": "taylor", "standardise": False}
_BLOCKS = {"name": "reconstruct", "epochs": 2}  # of text and of as much again that the model writes
_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {
        "linear": {"solver": "sparsegpt"},
        "channel": {"solver": {"name": "refit", "criterion": "taylor"}, "allocation": _BY_LOSS},
        "sublayer": {"allocation": "influence", "recovery": "patch"},
    },
    "balanced": {
        "linear": {"solver": "alps", "recovery": _BLOCKS},
        "channel": {"solver": {"name": "refit", "criterion": "taylor"}, "allocation": _BY_LOSS, "recovery": "patch"},
        "sublayer": {"allocation": "influence", "search": {"strategy": "progressive"}, "recovery": "patch"},
    },
    "best": {
        "linear": {"solver": "alps", "allocation": "fisher", "recovery": {"name": "distill", "rate": 3e-4, "first": _BLOCKS}},
        "channel": {"solver": {"name": "refit", "criterion": "taylor"}, "allocation": _BY_LOSS, "recovery": "distill"},
        "sublayer": {"allocation": "influence", "search": {"strategy": "progressive"}, "recovery": "distill"},
    },
}
_WRITING = ("balanced", "best")  # efforts that train matrices on more text than there is: on as much again that the model writes
EFFORTS = tuple(_PRESETS)


def preset(effort: Any, kind: str, granularity: Granularity) -> Mapping[str, Any]:
    """Fields of a stage as plain data. n:m says how much every matrix gives, so that no allocation goes with it. Raises RecipeError."""
    if effort not in EFFORTS:
        raise RecipeError(f"effort = {effort!r}: expected one of {', '.join(EFFORTS)}{nearest(str(effort), list(EFFORTS))}")
    found = _PRESETS[effort].get(kind, {})
    return {key: value for key, value in found.items() if key != "allocation"} if isinstance(granularity, NM) else found


def writes(effort: Any, kinds: Any) -> bool:
    """Whether the model itself writes as much calibration text as it is given, unless something else is said."""
    return isinstance(kinds, list | tuple) and "linear" in kinds and effort in _WRITING
