"""Super-network training: which networks a step trains, and who teaches them. One file each; the file name is the name."""

import random
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from ..errors import RecipeError
from ..search.genome import Genome
from ..search.sampling import Loss
from ..search.space import Candidate

__all__ = ["Net", "Teacher", "TrainingStrategy", "check", "linearly"]

Teacher = Literal["inplace", "frozen"]


@dataclass(frozen=True)
class Net:
    """A network that a step trains."""

    candidate: Candidate | None = None  # None: the dense model
    temperature: float | None = None  # at which it learns from the teacher, and from labels; None: from labels alone


@runtime_checkable
class TrainingStrategy(Protocol):
    """Says which networks, of one set of shared weights, are trained in every step.

    A frozen dataclass whose fields are its hyper-parameters. The gradients of all networks of a step are added up, and then the
    weights change once. One with a `temperature` has a `teacher`: inplace, the dense model as it is in this step (what it has
    learned flows on at once), or frozen, the dense model as it was before the training; a training may have another model take their
    place, and where the teacher is "other" it must; where `asks` is true it has to be there itself, as its answers to the examples are
    not enough (`hidden` and `noise`, which a training carries out, as in `Distilled`). One with a true `alone` trains the dense model
    and needs no genome.
    """

    def nets(self, genome: Genome, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        """The networks of step `step`, from 0, of `steps`, at least one.

        All chance comes from `rng`, which is the same whenever a step is taken again. `loss` is what a sub-network makes of a part
        of the step's batch, without gradients.
        """
        ...


def linearly(step: int, steps: int, rng: random.Random) -> bool:
    """True with a probability that grows from 0 at the first step to 1 at the last."""
    return rng.random() < step / max(steps - 1, 1)


def check(strategy: Any) -> None:
    """Refuse numbers that make no sense. Raises RecipeError."""
    temperature = getattr(strategy, "temperature", 1.0)
    if strategy.subnets < 1 or not temperature > 0:
        raise RecipeError(f"subnets = {strategy.subnets}, temperature = {temperature:g}: expected at least one sub-network, and a "
                          "temperature above 0.")
