"""How good a model's answers are: from what it said and what is right to one number, higher is better."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Num
from torch import Tensor

from .agreement import correlation, rank_correlation
from .errors import CorpusError
from .uncertainty import Interval, statistic_interval

__all__ = ["MetricName", "Score", "check_metric", "default_metric", "scored"]

MetricName = Literal["accuracy", "f1", "matthews", "spearman", "pearson"]

_OF_NUMBERS = ("spearman", "pearson")
_USUAL: dict[str, MetricName] = {"cola": "matthews", "mrpc": "f1", "qqp": "f1"}  # by what is in the corpus's name (GLUE)


@dataclass(frozen=True)
class Score:
    """What a model scored on a split of a task."""

    metric: MetricName
    value: float  # higher is better, at most 1
    protocol: str  # everything another program needs to arrive at the same number
    said: tuple[float, ...]  # by the model: the index of a class, or a number
    right: tuple[float, ...]  # the same of the labels
    classes: int  # 1 where the labels are numbers
    seconds: float

    @cached_property
    def interval(self) -> Interval:
        """Where the value may be: a 95 % bootstrap interval over examples."""
        said, right = (torch.tensor(values, dtype=torch.float64) for values in (self.said, self.right))
        return statistic_interval(lambda drawn: scored(self.metric, said[drawn], right[drawn], self.classes), len(said))

    def above(self, other: "Score") -> tuple[float, Interval]:
        """The difference to another model's value on the same examples, and where it may be: each example is drawn for both."""
        pairs = [tuple(torch.tensor(values, dtype=torch.float64) for values in (score.said, score.right)) for score in (self, other)]

        def difference(drawn: Tensor) -> float:
            mine, theirs = (scored(self.metric, said[drawn], right[drawn], self.classes) for said, right in pairs)
            return mine - theirs

        return self.value - other.value, statistic_interval(difference, len(self.said))


def default_metric(corpus: str, regression: bool) -> MetricName:
    """Spearman's correlation of numbers; of classes what GLUE says for the corpus: Matthews' correlation for CoLA, F1 for MRPC
    and QQP, else accuracy."""
    if regression:
        return "spearman"
    words = re.split(r"[^a-z0-9]+", Path(corpus).name.lower())
    return next((name for key, name in _USUAL.items() if key in words), "accuracy")


def check_metric(metric: MetricName, regression: bool, where: str) -> None:
    """Refuse a score that does not fit. Raises CorpusError."""
    if (metric in _OF_NUMBERS) != regression:
        fitting = [known for known in get_args(MetricName) if (known in _OF_NUMBERS) == regression]
        raise CorpusError(f"{where}: metric '{metric}' is of {'classes' if regression else 'numbers'}, and its labels are "
                          f"{'numbers' if regression else 'classes'}. Use {', '.join(fitting)}, or say what the labels are by kind.")


def scored(metric: MetricName, said: Num[Tensor, "examples"], right: Num[Tensor, "examples"], classes: int = 2) -> float:
    """One number from answers and labels: indices of so many classes, or numbers.

    f1 is that of the last class where there are two, and the mean over classes where there are more; a class that is neither
    said nor right does not count. matthews is Gorodkin's where there are more than two. What is undefined (a correlation with a
    constant, an F1 of nothing) is 0.
    """
    match metric:
        case "accuracy":
            return float((said == right).double().mean())
        case "f1":
            return _f1(_confusion(said, right, classes))
        case "matthews":
            return _matthews(_confusion(said, right, classes))
        case "spearman":
            return _defined(rank_correlation(said.tolist(), right.tolist()))
        case "pearson":
            return _defined(correlation(said.tolist(), right.tolist()))


def _defined(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _confusion(said: Tensor, right: Tensor, classes: int) -> Tensor:
    """How often each class (column) was said where each (row) was right."""
    return torch.bincount((right * classes + said).long(), minlength=classes**2).view(classes, classes).double()


def _f1(table: Tensor) -> float:
    both = table.diagonal()
    either = table.sum(0) + table.sum(1)
    if len(table) == 2:
        return float(2 * both[1] / either[1]) if either[1] else 0.0
    return float((2 * both / either)[either > 0].mean())


def _matthews(table: Tensor) -> float:
    """Gorodkin 2004, eq. 8; with two classes it is Matthews' of 1975."""
    total, both = table.sum(), table.diagonal().sum()
    said, right = table.sum(0), table.sum(1)
    size = math.sqrt(float((total**2 - said @ said) * (total**2 - right @ right)))
    return float(both * total - said @ right) / size if size else 0.0
