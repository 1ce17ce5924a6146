"""Metrics: is the model still good? One file each; the file name is the name."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import nn

__all__ = ["Context", "Measurement", "Metric"]


@dataclass(frozen=True)
class Context:
    """What a metric may need beside the model."""

    tokenizer: Any
    device: str = "cpu"


@dataclass(frozen=True)
class Measurement:
    """A number that can be trusted: with the parts it is the mean of, and how it came about."""

    value: float
    unit: str
    better: Literal["lower", "higher"]
    protocol: str  # everything another program needs to arrive at the same number
    parts: tuple[float, ...]  # per window or per example, in a fixed order, for paired comparisons
    seconds: float

    @property
    def label(self) -> str:
        """A short name for tables: the protocol up to its first comma."""
        return self.protocol.split(",")[0]


@runtime_checkable
class Metric(Protocol):
    """Judges a model.

    A frozen dataclass whose fields are its settings. `measure` leaves the model as it was and gives the same number
    to the same model. Raises RecipeError when the model is not of a kind it can judge.
    """

    unit: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]]

    def measure(self, model: nn.Module, context: Context) -> Measurement:
        """The number and how it came about."""
        ...
