"""Draw equally many candidates of every size."""

from dataclasses import dataclass

from ...errors import RecipeError
from ..explored import Explored, begin, remember
from . import Question

__all__ = ["Stratified"]


@dataclass(frozen=True)
class Stratified:
    """Random search whose candidates are spread over what remains of the model, where a genome's own draws may all be of about half.

    A draw takes a number in [0, 1] for every variable and raises all of them to one power, with which as much remains as is wanted;
    it is for the stratum that has the fewest candidates.
    """

    strata: int = 10  # equal intervals of what remains, from the smallest sub-network to the largest

    init, tell = begin, staticmethod(remember)

    def __post_init__(self) -> None:
        if self.strata < 1:
            raise RecipeError(f"strata = {self.strata}: expected at least one.")

    def ask(self, state: Explored, count: int) -> list[Question]:
        return state.spread(count, self.strata)
