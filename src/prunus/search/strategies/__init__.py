"""Strategies: which candidates a search looks at next. One file each; the file name is the name."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from ..space import Candidate, Query, Trial

__all__ = ["Strategy"]


@runtime_checkable
class Strategy(Protocol):
    """Decides what to value next from what has been valued.

    A frozen dataclass whose fields are its hyper-parameters; what it learns is in the state, a value that it gives back.
    One with a true `needs_errors` is refused where the solver measures none; one with a true `dense_level` gets level 0 too; one
    with a true `per_channel` chooses channels, from a ChannelSpace, and needs no levels.
    Every candidate it asks for meets the space's budget, but those that it calls partial. A state with a `close` is closed
    when the search ends. Equal seeds and equal trials give equal questions, so that an
    interrupted search, asked again with the trials it had, goes on as if nothing had happened.
    """

    def init(self, space: Any, first: Candidate, seed: int) -> Any:
        """The state before anything is valued; `space` is a Space or a ChannelSpace, `first` the candidate to improve."""
        ...

    def ask(self, state: Any) -> list[Query]:
        """What to value next; nothing, when it has come to an end."""
        ...

    def tell(self, state: Any, trials: Sequence[Trial]) -> Any:
        """The state after the answers to the last `ask`, in its order."""
        ...
