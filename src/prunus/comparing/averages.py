"""The mean of several tasks: the one number by which most papers compare, tested like any other."""

import math
from collections.abc import Sequence

from ..comparison import STORED, bare, stored_of
from ..evaluation import Measurement
from ..files import fingerprint
from .values import MEAN
from .verdicts import bad_parts

__all__ = ["with_mean"]


def with_mean(measured: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """What was measured, and behind the shares of right answers of several tasks their mean; nothing more where there are fewer than two,
    or where a task has several metrics, which are no tasks of their own.

    Tasks weigh the same, however many examples they have: an example is worth as much as makes the mean of all examples the mean of the
    tasks, so that examples are compared in pairs over all tasks at once. It is no number where a task's example is none.
    """
    tasks = [item for item in measured if item.examples and item.unit == "share" and item.kind == "means" and not item.draws]
    names = [item.label.split(" ")[0] for item in tasks]
    if len(tasks) < 2 or len(set(names)) < len(names):
        return tuple(measured)
    total, parts = sum(len(item.parts) for item in tasks), []
    for item in tasks:
        bad, weight = set(bad_parts(item)), total / (len(tasks) * len(item.parts))
        parts += [math.nan if place in bad else part * weight for place, part in enumerate(item.parts)]
    how = stored_of(tasks[0].protocol)
    stored = f", {STORED}{how}" if how else ""
    protocol = (f"{MEAN}{len(tasks)} tasks, which weigh the same, {'; '.join(item.label for item in tasks)}, sha256 of their protocols "
                f"{fingerprint(*(bare(item.protocol) for item in tasks))}{stored}")
    return (*measured, Measurement(math.fsum(item.value for item in tasks) / len(tasks), "share", tasks[0].better, protocol, tuple(parts),
                                   math.fsum(item.seconds for item in tasks), "means"))
