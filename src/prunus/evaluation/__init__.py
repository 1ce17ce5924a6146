"""Metrics: is the model still good? One file each; the file name is the name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import nn

from ..uncertainty import (
    Interval,
    difference_interval,
    draws_interval,
    mean_interval,
    paired_ratio_interval,
    perplexity_interval,
    share_interval,
)

__all__ = ["Context", "Example", "Measurement", "Metric", "protocols_of"]


@dataclass(frozen=True)
class Context:
    """What a metric may need beside the model."""

    tokenizer: Any
    device: str = "cpu"
    watch: Callable[[str, int | float, int | float], None] = lambda phase, done, total: None  # told how far a metric that takes long is
    dense: dict[str, Any] | None = None  # what metrics that compare remember of the first model they measure; None: nothing is compared
    stored: str = ""  # how the model's weights were stored, where it was loaded and not changed since; a protocol says so


@dataclass(frozen=True)
class Example:
    """One example of a task, and what the model gave for it."""

    name: str  # its id, or its place in the data
    right: str  # the answer; of several choices the place of the right one, from 0
    said: str  # by the model; of several choices the place of the most probable one
    likelihoods: tuple[float, ...] = ()  # logarithms, in nats, one per choice; none where text was written


@dataclass(frozen=True)
class Measurement:
    """A number that can be trusted: with the parts it is made of, and how it came about."""

    value: float
    unit: str
    better: Literal["lower", "higher"]
    protocol: str  # everything another program needs to arrive at the same number
    parts: tuple[float, ...]  # per window, example or round, in a fixed order, for paired comparisons
    seconds: float
    kind: Literal["losses", "rounds", "means"] = "losses"  # the value is exp of the mean of the parts, their median, or their mean
    draws: tuple[float, ...] = ()  # of a number that is no mean of its parts: its value on examples drawn again and again
    examples: tuple[Example, ...] = field(default=(), repr=False)  # what the parts are of, where they are examples of a task

    @property
    def label(self) -> str:
        """A short name for tables: the protocol up to its first comma."""
        return self.protocol.split(",")[0]

    @property
    def interval(self) -> Interval:
        """Where the value may be: a 95 % interval, of shares of right answers Wilson's and else by bootstrap; the least and the most of
        rounds."""
        match self.kind:
            case "losses":
                return perplexity_interval(self.parts)
            case "rounds":
                return min(self.parts), max(self.parts)
        if self.draws:
            return draws_interval(self.draws, len(self.parts))
        return share_interval(round(sum(self.parts)), len(self.parts)) if set(self.parts) <= {0, 1} else mean_interval(self.parts)

    def over(self, dense: "Measurement") -> tuple[float, Interval]:
        """The ratio to the dense model's value, and where it may be: losses are paired; rounds were not run in turn, so they are not."""
        if self.kind == "losses":
            return self.value / dense.value, paired_ratio_interval(dense.parts, self.parts)
        return self.value / dense.value, (min(self.parts) / max(dense.parts), max(self.parts) / min(dense.parts))

    def above(self, dense: "Measurement") -> tuple[float, Interval]:
        """The difference to the dense model's value, and where it may be: each example is drawn for both."""
        if self.draws:
            pairs = zip(self.draws, dense.draws, strict=True)
            return self.value - dense.value, draws_interval([mine - theirs for mine, theirs in pairs], len(self.parts))
        return self.value - dense.value, difference_interval(dense.parts, self.parts)

    def beside(self, dense: "Measurement") -> tuple[Literal["ratio", "difference"], float, Interval]:
        """How such numbers are compared: means by their difference, others by their ratio."""
        return ("difference", *self.above(dense)) if self.kind == "means" else ("ratio", *self.over(dense))


def protocols_of(numbers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """From labels and protocols, which begin with them: sentences in which what several numbers have in common is said once."""
    found: dict[str, list[str]] = {}
    for label, protocol in numbers:
        found.setdefault(protocol.removeprefix(label), []).append(label)
    return tuple(f"{'; '.join(labels)}{rest}." for rest, labels in found.items())


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
