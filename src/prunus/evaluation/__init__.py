"""Metrics: is the model still good? One file each; the file name is the name."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import nn

from ..uncertainty import Interval, paired_ratio_interval, perplexity_interval

__all__ = ["Context", "Measurement", "Metric"]


@dataclass(frozen=True)
class Context:
    """What a metric may need beside the model."""

    tokenizer: Any
    device: str = "cpu"


@dataclass(frozen=True)
class Measurement:
    """A number that can be trusted: with the parts it is made of, and how it came about."""

    value: float
    unit: str
    better: Literal["lower", "higher"]
    protocol: str  # everything another program needs to arrive at the same number
    parts: tuple[float, ...]  # per window, example or round, in a fixed order, for paired comparisons
    seconds: float
    kind: Literal["losses", "rounds"] = "losses"  # parts are losses, of whose mean the value is exp; or rounds, of which it is the median

    @property
    def label(self) -> str:
        """A short name for tables: the protocol up to its first comma."""
        return self.protocol.split(",")[0]

    @property
    def interval(self) -> Interval:
        """Where the value may be: a 95 % bootstrap interval of losses, the least and the most of rounds."""
        return perplexity_interval(self.parts) if self.kind == "losses" else (min(self.parts), max(self.parts))

    def over(self, dense: "Measurement") -> tuple[float, Interval]:
        """The ratio to the dense model's value, and where it may be: losses are paired; rounds were not run in turn, so they are not."""
        if self.kind == "losses":
            return self.value / dense.value, paired_ratio_interval(dense.parts, self.parts)
        return self.value / dense.value, (min(self.parts) / max(dense.parts), max(self.parts) / min(dense.parts))


@runtime_checkable
class Metric(Protocol):
    """Judges a model.

    A frozen dataclass whose fields are its settings. `measure` leaves the model as it was and gives the same number
    to the same model, unless it is `timed`. Raises RecipeError when the model is not of a kind it can judge.
    """

    unit: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]]

    def measure(self, model: nn.Module, context: Context) -> Measurement | tuple[Measurement, ...]:
        """The number and how it came about; several where one look gives several."""
        ...
