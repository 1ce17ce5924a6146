"""Draw candidates at random, as super-network training does."""

from dataclasses import dataclass

from ..explored import Explored, begin, remember
from . import Question

__all__ = ["Random"]


@dataclass(frozen=True)
class Random:
    """The baseline of every search: the genome's own draws, each independent of the others."""

    init, tell = begin, staticmethod(remember)

    def ask(self, state: Explored, count: int) -> list[Question]:
        return state.questions(count)
