"""The dense model alone, which learns from another model too: distillation."""

import math
import random
from dataclasses import dataclass
from typing import ClassVar

from ..errors import RecipeError
from ..search.genome import Genome
from ..search.sampling import Loss
from . import Net

__all__ = ["Distilled"]


@dataclass(frozen=True)
class Distilled:
    """In every step the dense model, which learns from labels and from what another, larger one says (Hinton et al. 2015).

    With `hidden` it learns how that one comes to it too, block by block (Jiao et al. 2020, TinyBERT): the loss has `hidden` times how far
    the streams behind the blocks are from the teacher's, as a share of its squares. For what was cut out of the teacher: it has to be as
    wide, and to read the same tokens.

    With `noise` about half of the examples of every step are others than those that were given: this share of their tokens is replaced by
    others of the step, and what they are the teacher alone says. It answers to more than there are examples (augmentation, as Tang et al.
    2019 and Jiao et al. 2020 do it by language models), at no more cost.
    """

    temperature: float = 2.0  # of what the teacher says
    hidden: float = 0.0  # the weight of how far the streams behind the blocks are from the teacher's
    noise: float = 0.0  # the share of tokens that are replaced in about half of the examples

    alone: ClassVar[bool] = True
    teacher: ClassVar[str] = "other"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RecipeError(f"temperature = {self.temperature:g}: expected a number above 0.")
        if not 0 <= self.hidden < math.inf:
            raise RecipeError(f"hidden = {self.hidden:g}: expected 0 or more.")
        if not 0 <= self.noise < 1:
            raise RecipeError(f"noise = {self.noise:g}: expected a share of at least 0 and below 1.")

    @property
    def asks(self) -> bool:
        """Whether the teacher has to be there, and its answers to the examples are not enough."""
        return self.hidden > 0 or self.noise > 0

    def nets(self, genome: Genome | None, step: int, steps: int, rng: random.Random, loss: Loss) -> list[Net]:
        return [Net(None, self.temperature)]
