"""How far a run has come, and whom that is told."""

from collections.abc import Callable
from dataclasses import dataclass

from .result import SiteRecord

__all__ = ["Progress", "Watch", "telling"]


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of one phase, and the record of the site just finished."""

    phase: str  # "dense model", "solving levels", "ranking channels", "searching", "pruning", "solving MLPs", …, "pruned model"
    done: int | float  # metrics measured, matrices solved at all levels, looks at the search text, weights solved, blocks, steps
    total: int | float
    record: SiteRecord | None = None


Watch = Callable[[Progress], None]


def telling(tell: Watch) -> Callable[[str, int | float, int | float], None]:
    """For those who know a phase, what is done of it and the total, and no more."""
    return lambda phase, done, total: tell(Progress(phase, done, total))
