"""What a comparison is asked, and what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..achieved import Counted
from ..errors import RecipeError
from ..evaluation import Measurement
from ..generations import PROMPTS
from ..grams import Overlap
from ..known import Sanity
from ..result import SiteRecord
from ..speed import Timing
from ..uncertainty import Interval

__all__ = ["MEAN", "Asked", "Beside", "Compared", "Contender", "Entry", "Group", "Made", "Row", "Spent"]

MEAN = "mean of "  # begins the label of the mean of several tasks
Group = Literal["Texts", "Tasks", "Speed", "Size"]


@dataclass(frozen=True)
class Asked:
    """What is measured of every model, in the same way."""

    corpora: tuple[str, ...] = ("builtin",)  # report texts, as in Calibration
    tasks: tuple[str, ...] = ()  # as in the metric of that name
    limit: int | None = None  # examples of each task; None: all
    shots: int | None = None  # None: as the task says
    split: str | None = None  # of the corpora; None: test, or validation where there is no test
    length: int = 512  # tokens per window
    tokens: int = 20_480  # of each text that are read; 0: all
    prompts: tuple[str, ...] = field(default=PROMPTS)  # that are answered; @mt_bench:4:0 stands for 4 of a corpus, by seed 0
    answer: int = 64  # tokens of an answer, at most
    rounds: int = 5  # of speed, in which every model has its turn; 0: speed and memory are not measured
    read: int = 256  # tokens that are read in a round
    write: int = 32  # tokens that are written in a round
    device: str = "cpu"
    dtype: str = "auto"  # of all models; auto: the dense model's own

    def __post_init__(self) -> None:
        if not (self.corpora or self.tasks):
            raise RecipeError("compare: neither corpora nor tasks: expected at least one.")
        twice = [name for names in (self.corpora, self.tasks) for name in names if names.count(name) > 1]
        if twice:
            raise RecipeError(f"compare: '{twice[0]}' is named twice: expected every text and every task once.")
        if self.rounds < 0 or min(self.answer, self.read, self.write) < 1:
            raise RecipeError(f"compare: rounds = {self.rounds}, answer = {self.answer}, read = {self.read}, write = {self.write}: "
                              "expected at least 1 of each, or 0 rounds.")


@dataclass(frozen=True)
class Made:
    """What the folder of a pruned model says of how it was made."""

    command: str  # that makes it again; empty where the folder does not say
    sites: tuple[SiteRecord, ...]
    seconds: float | None  # of the whole run; None where the folder does not say
    tokens: float | None  # forwarded, in passes through the whole dense model
    host_bytes: int | None  # the most memory the run has held
    joules: float | None  # of the whole machine meanwhile; None where it could not be read
    stages: Mapping[str, float] = field(default_factory=dict)  # the seconds, by stage of the work
    device_bytes: int | None = None  # the most that the tensors of the run have held on a GPU
    questions: int = 0  # candidates, or parts of them, that searches asked for
    looks: float = 0.0  # at the whole search text, of all searches


@dataclass(frozen=True)
class Spent:
    """What a part of the measuring took, whenever that was."""

    seconds: float
    tokens: float = 0.0  # forwarded, in passes through the whole of the model that is measured
    joules: float | None = None  # of the whole machine meanwhile; None where it could not be read
    host_bytes: int = 0  # the most memory that the process had held by then
    device_bytes: int | None = None  # the most that its tensors had held on a GPU; None without one


@dataclass(frozen=True)
class Contender:
    """One model, and all that is known of it."""

    name: str  # short, and no other's
    source: str  # as it was named
    weights: str  # a hash of its weights, its config and its tokenizer
    read: str  # its dtype and its tokenizer, as protocols say it
    parameters: int
    bytes: int  # of its weights in memory
    file_bytes: int | None  # of the files that hold them; None where they are not on this machine as files
    sparsity: float | None  # of all matrices of the dense model's blocks, counted in the weights; None where it was not pruned from it
    matrices: tuple[Counted, ...]  # the same of each
    blocks: int  # that are left
    made: Made | None  # None where the source is no folder of a pruned model
    stored: str = ""  # how its weights are stored in few bits; empty of plain ones
    measured: tuple[Measurement, ...] = ()  # texts, then tasks; of all models the same, in the same order
    answers: tuple[str, ...] = ()  # to the prompts
    timing: Timing | None = None  # measured in turn with all others
    memory: int | None = None  # bytes, the peak of a process of its own that reads and writes
    spent: Mapping[str, Spent] = field(default_factory=dict)  # on looking at it and measuring it, by part


@dataclass(frozen=True)
class Beside:
    """A pruned model's number beside the dense model's."""

    word: Literal["ratio", "difference"]
    value: float
    interval: Interval  # paired, 95 %; of rounds the least and the most
    p: float | None  # of no difference, for all pruned models at once (Holm); None where there is no test
    said: Literal["better", "worse", "open"]  # open: this does not show a difference


@dataclass(frozen=True)
class Entry:
    """One model's place in one row."""

    value: float
    interval: Interval | None
    beside: Beside | None = None  # None of the dense model, and of what is not finite
    best: bool = False  # of the pruned models, or not to be told from the best of them


@dataclass(frozen=True)
class Row:
    """One number of all models."""

    group: Group
    label: str
    unit: str
    better: Literal["lower", "higher", ""]  # empty: neither
    protocol: str
    entries: tuple[Entry | None, ...]  # one per model; None where there is no such number
    verdict: str = ""  # what can be said, in a sentence
    comparisons: int = 0  # tests


@dataclass(frozen=True)
class Compared:
    """Several models, the dense one first."""

    asked: Asked
    prompts: tuple[str, ...]  # that were answered
    models: tuple[Contender, ...]
    rows: tuple[Row, ...]
    flags: tuple[str, ...]  # why figures may not be what they look like; a reader sees these first
    notes: tuple[str, ...]  # what a reader should know
    overlaps: Mapping[str, tuple[Overlap, ...]]  # by model: what its folder says it has seen, in the report texts
    sanity: tuple[Sanity, ...]
    environment: Mapping[str, str]
    command: str  # that does it again
    spent: Mapping[str, Spent] = field(default_factory=dict)  # on what is not of one model, by part

    @property
    def dense(self) -> Contender:
        """The model that the others are compared with."""
        return self.models[0]

    @property
    def pruned(self) -> tuple[Contender, ...]:
        """The others."""
        return self.models[1:]

    @property
    def comparisons(self) -> int:
        """Tests in all rows."""
        return sum(row.comparisons for row in self.rows)
