"""Which of several models is the best, where that can be said: pairs that are pairs, tests, and a correction for their number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, runtime_checkable

from .errors import ComparisonError
from .significance import holm, mcnemar, sign_flips
from .uncertainty import Interval, difference_interval

__all__ = ["STORED", "Ranking", "Sample", "Standing", "bare", "check_pair", "difference_of", "p_value", "ranked", "stored_of", "verdict_of"]

_READ_BY = "tokenizer of "  # as protocols begin what they say of it
STORED = "weights stored as "  # and of the model itself, which is what may differ between two that are compared


@runtime_checkable
class Sample(Protocol):
    """What was measured of one model, example by example; a Measurement is one."""

    @property
    def parts(self) -> tuple[float, ...]:
        """A loss per window, or what each example is worth, in the order of the text."""
        ...

    @property
    def better(self) -> str:
        """Whether "lower" or "higher" parts are better."""
        ...

    @property
    def protocol(self) -> str:
        """All that decides the number but the model, in parts that commas divide."""
        ...


@dataclass(frozen=True)
class Standing:
    """One of several models beside the best."""

    name: str
    mean: float  # of its parts
    difference: float  # of the means, to the best's
    interval: Interval  # of the difference, 95 %, not corrected for the number of comparisons
    p: float  # of no difference
    adjusted: float  # the same, for all comparisons at once
    tied: bool  # whether it cannot be told from the best


@dataclass(frozen=True)
class Ranking:
    """Several models on the same examples, the best first."""

    standings: tuple[Standing, ...]
    comparisons: int  # that the p-values are corrected for: of each with each
    level: float  # from which p-value on two models are tied

    @property
    def best(self) -> str:
        """The name of the model with the best mean, which says nothing of those that are tied with it."""
        return self.standings[0].name

    @property
    def tied(self) -> tuple[str, ...]:
        """The best, and the models that cannot be told from it."""
        return tuple(standing.name for standing in self.standings if standing.tied)

    @property
    def verdict(self) -> str:
        """What can be said, in a sentence."""
        others = [standing.name for standing in self.standings if not standing.tied]
        return verdict_of(self.tied, others, self.comparisons, self.level)


def verdict_of(tied: Sequence[str], others: Sequence[str], comparisons: int, level: float) -> str:
    """What can be said of the best and those that are tied with it, and of others, in a sentence."""
    corrected = f" (p < {level:g} after Holm's correction for {comparisons} comparisons)" if comparisons > 1 else f" (p < {level:g})"
    best = tied[0]
    if len(tied) + len(others) == 1:
        return f"{best} alone was measured."
    if not others:
        return f"No model is better than another{corrected.replace('<', '≥')}: {', '.join(tied)} are tied."
    if len(tied) == 1:
        return f"{best} is better than {', '.join(others)}{corrected}."
    return f"{best} is better than {', '.join(others)}{corrected}; {', '.join(tied[1:])} cannot be told from it."


def check_pair(one: Sample, other: Sample, names: tuple[str, str] = ("one", "the other")) -> None:
    """Refuse two results that are no pair. Raises ComparisonError that says why."""
    who = f"{names[0]} and {names[1]}"
    found = difference_of(bare(one.protocol), bare(other.protocol))
    if found and all(part.startswith(_READ_BY) for part in found):
        raise ComparisonError(f"{who}: their tokenizers differ ({found[0]}; {found[1]}), so that losses per token are of other tokens. "
                              "Compare what does not count tokens, such as a task's accuracy.")
    if found:
        raise ComparisonError(f"{who}: measured by other protocols: '{found[0]}' and '{found[1]}'. Measure both in the same way.")
    if one.better != other.better:
        raise ComparisonError(f"{who}: of one {one.better} values are better, of the other {other.better} ones. "
                              "Measure both in the same way.")
    if len(one.parts) != len(other.parts) or not one.parts:
        raise ComparisonError(f"{who}: {len(one.parts)} and {len(other.parts)} examples: expected as many, and at least one. Measure both "
                              "on the same text.")
    for name, sample in zip(names, (one, other), strict=True):
        bad = [place for place, part in enumerate(sample.parts) if not math.isfinite(part)]
        if bad:
            raise ComparisonError(f"{name}: its value of example {bad[0]} is {sample.parts[bad[0]]} ({len(bad)} of {len(sample.parts)} are "
                                  "not finite). The model is ruined or overflows; try --dtype float32, or leave it out.")


def bare(protocol: str) -> str:
    """A protocol without what it says of the model."""
    return ", ".join(part for part in protocol.split(", ") if not part.startswith(STORED))


def stored_of(protocol: str) -> str:
    """How the model's weights were stored, as a protocol says it; empty where it says nothing."""
    return next((part.removeprefix(STORED) for part in protocol.split(", ") if part.startswith(STORED)), "")


def difference_of(one: str, other: str) -> tuple[str, str] | None:
    """The first parts in which two protocols differ; None where they are the same."""
    if one == other:
        return None
    mine, theirs = (protocol.split(", ") for protocol in (one, other))
    length = max(len(mine), len(theirs))
    pairs = zip(*(parts + ["nothing"] * (length - len(parts)) for parts in (mine, theirs)), strict=True)
    return next(pair for pair in pairs if pair[0] != pair[1])


def p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """Of no difference on the same examples: McNemar's test where they are right (1) or wrong (0), else random signs."""
    return (mcnemar if set(one) | set(other) <= {0, 1} else sign_flips)(one, other)


def ranked(models: Mapping[str, Sample], level: float = 0.05) -> Ranking:
    """Several models, measured on the same examples, by their means: which is the best, and which cannot be told from it.

    Every model is tested against every other, and the p-values are corrected for all these tests by Holm's method: as the best is
    found from the same data, correcting for its own tests alone would call one of several equal models better too often.
    Raises ComparisonError.
    """
    names = list(models)
    if not names:
        raise ComparisonError("no model was measured: expected at least one.")
    for other in names:
        check_pair(models[names[0]], models[other], (names[0], other))
    means = {name: math.fsum(models[name].parts) / len(models[name].parts) for name in names}
    order = sorted(names, key=means.__getitem__, reverse=models[names[0]].better == "higher")
    tested = {pair: p_value(*(models[name].parts for name in pair)) for pair in combinations(order, 2)}
    adjusted, best = holm(tested), order[0]
    standings = [Standing(best, means[best], 0.0, (0.0, 0.0), 1.0, 1.0, True)]
    for name in order[1:]:
        pair = (best, name)
        interval = difference_interval(models[best].parts, models[name].parts)
        standings.append(Standing(name, means[name], means[name] - means[best], interval, tested[pair], adjusted[pair],
                                  adjusted[pair] >= level))
    return Ranking(tuple(standings), len(tested), level)
