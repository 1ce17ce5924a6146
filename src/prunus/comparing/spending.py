"""What a part of a comparison takes: time, tokens through a model, memory and energy."""

import math
from collections.abc import Callable
from typing import Any

from ..anatomy import describe
from ..cost import metered
from ..environment import Clock
from .values import Spent

__all__ = ["spending"]


def spending(work: Callable[[], Any], device: str, model: Any = None) -> tuple[Any, Spent]:
    """What some work gives, and what it took; tokens are counted where they go through `model`."""
    clock = Clock()
    with metered(clock, device) as meter:
        if model is not None:
            meter.follow(model, describe(model))
        with clock("work"):
            found = work()
        cost = meter.cost(0.0, 0, 0)
    joules = math.fsum(cost.joules.values()) if cost.joules else None
    return found, Spent(cost.seconds["work"], math.fsum(cost.tokens.values()), joules, cost.host_bytes, cost.device_bytes)
