"""Speed with a pinned protocol: reading, writing, and the time to the first token."""

import statistics
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..calibration.blocks import evaluating
from ..calibration.sample import check_length
from ..errors import RecipeError
from ..speed import NUMBERS, in_pytorch
from . import Context, Measurement

__all__ = ["Speed"]


@dataclass(frozen=True)
class Speed:
    """Tokens read and written per second, and the time to the first token, in PyTorch where the model is, one sequence.

    In a report the dense and the pruned model run at different times, and whatever else the machine did then is in the ratio;
    `prunus speed` lets them run in turn.
    """

    prompt: int = 256  # tokens that are read
    answer: int = 32  # tokens that are written, one by one, with the cache
    repetitions: int = 5  # rounds, after one that warms up

    unit: ClassVar[str] = "tokens/s"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.prompt, self.answer, self.repetitions) < 1:
            raise RecipeError(f"speed: prompt = {self.prompt}, answer = {self.answer}, repetitions = {self.repetitions}: expected at "
                              "least 1 of each.")

    def measure(self, model: nn.Module, context: Context) -> tuple[Measurement, ...]:
        start = time.perf_counter()
        check_length(model, self.prompt + self.answer, "speed.prompt + speed.answer")
        with evaluating(model):
            timing, = in_pytorch([model], self.prompt, self.answer, self.repetitions)
        protocol, seconds = self._protocol(model), time.perf_counter() - start
        rows = [(label, unit, better, rounds(timing)) for label, unit, better, rounds in NUMBERS]
        return tuple(Measurement(statistics.median(parts), unit, better, f"{label}, {protocol}", parts, seconds, "rounds")
                     for label, unit, better, parts in rows)

    def _protocol(self, model: Any) -> str:
        where, threads = next(model.parameters()).device, torch.get_num_threads()
        return (f"PyTorch, {self.prompt} random tokens read, {self.answer} written one by one with the cache, one sequence, median of "
                f"{self.repetitions} rounds after one that warms up, {str(model.dtype).removeprefix('torch.')}, {where.type}, "
                f"{threads} thread{'s' * (threads > 1)}, not in turn with another model")
