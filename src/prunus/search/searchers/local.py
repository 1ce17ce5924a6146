"""Change one variable of a candidate on the front."""

import random
from dataclasses import dataclass

from ..explored import Explored, begin, changed, remember
from ..pareto import front
from ..space import Candidate
from . import Question

__all__ = ["Local"]


@dataclass(frozen=True)
class Local:
    """Local search as Klein et al. 2024 compare it: any member of the present front, and another value of any
    variable. When all such neighbours of the front are known, the genome draws."""

    init, tell = begin, staticmethod(remember)

    def ask(self, state: Explored, count: int) -> list[Question]:
        members = [state.trials[index].candidate for index in front(state.values)]

        def propose(rng: random.Random, asked: list[Candidate]) -> Candidate | None:
            taken = {*state.seen, *asked}
            found = (changed(member, state.genome.sizes, taken, rng) for member in rng.sample(members, len(members)))
            return next((candidate for candidate in found if candidate is not None), None)

        return state.questions(count, propose)
