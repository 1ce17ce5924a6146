"""A front: sub-networks that no other beats in every objective, with the search that found them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .calibration.sample import Calibration
from .calibration.tasks import Task
from .errors import LoadError, RecipeError, UnknownName
from .finetune import Training
from .lookup import names
from .recipe import build, plain
from .search.baselines import BASELINES
from .search.objectives import QUALITIES, check_objectives
from .search.pareto import pick, quantiles, regret
from .search.plan import HELD_OUT
from .search.searchers import Searcher
from .search.searchers.nsga2 import NSGA2
from .search.space import Candidate
from .search.spaces import ArchitectureSpace
from .search.spaces.mixed import Mixed
from .search.spaces.small import Small

__all__ = ["Front", "FrontSearch", "Point"]

FILE, LEVELS, FITS = "front.json", "levels", "fits"  # in a run's folder


@dataclass(frozen=True)
class FrontSearch:
    """All that decides a front, but the model and the machine."""

    space: ArchitectureSpace = Small()  # which sub-networks there are
    objectives: tuple[str, ...] = ("error", "params")  # error, loss, divergence; and params, flops, latency, memory, as shares of the dense
    searcher: Searcher = NSGA2()  # which of them are looked at
    evaluations: int = 100  # that are looked at
    order: str = "none"  # of channels, the last of which go first: none (as they are), fisher, or a criterion
    refit: bool = False  # whether what reads channels is fitted to those that stay, by the task's training split or by text
    task: Task | None = None  # whose validation split is searched on; none: text is
    text: Calibration = Calibration("self", samples=16)  # searched on, where there is no task; a fourth of it is held out
    calibration: Calibration = Calibration()  # orders channels, and what reads them is fitted by it, where there is no task
    batch: int = 1  # sequences that latency is measured with
    seed: int = 0
    baselines: tuple[str, ...] = ()  # valued beside the front: layerdrop, heads, rfp (retraining-free pruning), or a criterion
    training: Training | None = None  # of every sub-network by itself, before it is valued; none: all have the model's weights

    def __post_init__(self) -> None:
        check_objectives(self.objectives)
        if self.task is None and self.text.samples < HELD_OUT:
            raise RecipeError(f"text.samples = {self.text.samples}: expected at least {HELD_OUT}, of which one in {HELD_OUT} is held out.")
        if self.evaluations < 1 or self.batch < 1:
            raise RecipeError(f"evaluations = {self.evaluations}, batch = {self.batch}: expected at least 1 of each.")
        if not set(self.objectives) & set(QUALITIES):
            raise RecipeError(f"objectives = {', '.join(self.objectives)}: expected one of {', '.join(QUALITIES)} among them; without any "
                              "the smallest sub-network is the best.")
        if hasattr(self.searcher, "grace") and self.training is None:
            raise RecipeError("searcher 'asha' says how long each sub-network is trained, and here none is trained by itself. Use nsga2, "
                              "or say how they are trained (--train epochs=5).")
        self._check_weights()
        for name in self.baselines:
            if name not in (known := [*BASELINES, *names("criteria")]) and ":" not in name:
                raise UnknownName("baselines", name, known)
        if "error" in self.objectives and self.task is None:
            raise RecipeError("objectives: 'error' is of a task, and none is named. Name one (--task), or use divergence or loss.")

    def _check_weights(self) -> None:
        """Where they are from."""
        if "rfp" in self.baselines and self.training:
            raise RecipeError("baseline 'rfp' is retraining-free, and here all sub-networks are trained. Leave it out, or the training.")
        if self.training and isinstance(self.space, Mixed):
            raise RecipeError("space mixed: training would change weights that are 0. Search in medium, or leave the training out.")
        if self.refit and self.training:
            raise RecipeError("refit: every sub-network is trained by itself here, from the model's weights. Leave one of the two out.")
        if self.refit and isinstance(self.space, Mixed):
            raise RecipeError("refit: space mixed has weights that a solver made, and some are 0. Search in medium, or leave it out.")


@dataclass(frozen=True)
class Point:
    """A sub-network of the front."""

    candidate: Candidate
    values: tuple[float, ...]  # in the search
    held_out: tuple[float, ...]  # on what the search did not see
    dominated: bool  # by another point, there
    resource: int = 0  # that it was trained for, where points are trained by themselves; 0: the whole training


@dataclass(frozen=True)
class Front:
    """What a search has found."""

    plan: FrontSearch
    source: str  # of the model
    points: tuple[Point, ...]  # by the first objective
    dense: Point
    looked: int  # sub-networks
    failed: int  # without values
    protocols: tuple[str, ...]  # of what was searched on, and of what was not
    orders: Mapping[str, tuple[int, ...]]  # of channels, by site; none: as they are
    seconds: Mapping[str, float]
    environment: Mapping[str, str]
    interrupted: bool = False
    baselines: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)  # valued beside it, without a search
    weights: str = ""  # a hash of the weights that were searched

    @property
    def volumes(self) -> dict[str, float]:
        """Hypervolumes on held-out data, of the front and of the baselines: of quantiles among all their points, with the reference 2 in
        every objective (Klein et al. 2024)."""
        held = {"front": [point.held_out for point in (*self.points, self.dense)],
                **{name: [point.held_out for point in (*points, self.dense)] for name, points in self.baselines.items()}}
        return {name: 2.0 ** len(self.plan.objectives) - regret(values) for name, values in quantiles(held).items()}

    def pick(self, limits: Sequence[str] = ()) -> Point:
        """The best point within limits such as "params<=0.5", by the first objective that none is on; without any, the knee. Raises
        RecipeError that names the nearest point where none is within them."""
        return self.points[pick([point.values for point in self.points], self.plan.objectives, limits)]

    def to_json(self) -> str:
        """Plain data."""
        data = {**{item: getattr(self, item) for item in ("source", "weights", "looked", "failed", "protocols", "interrupted")},
                "plan": plain(self.plan), "points": [asdict(point) for point in self.points], "dense": asdict(self.dense),
                "orders": {name: list(order) for name, order in self.orders.items()}, "seconds": dict(self.seconds),
                "environment": dict(self.environment),
                "baselines": {name: [asdict(point) for point in points] for name, points in self.baselines.items()},
                "volumes": self.volumes}
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "Front":
        """From a run's folder. Raises LoadError."""
        file = folder / FILE
        if not file.is_file():
            raise LoadError(f"{folder}: holds no front ({FILE}). Name the folder of a finished `prunus search --space`.")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            points = [_point(row) for row in (*data["points"], data["dense"])]
            beside = {name: tuple(map(_point, rows)) for name, rows in data["baselines"].items()}
            plan = build(FrontSearch, data["plan"], str(file))
            for point in (*points, *(point for found in beside.values() for point in found)):
                if not len(point.values) == len(point.held_out) == len(plan.objectives):
                    raise ValueError(f"{len(point.values)} and {len(point.held_out)} values of {len(plan.objectives)} objectives")
            if len({len(point.candidate) for point in points}) > 1:
                raise ValueError("candidates of several lengths")
            return cls(plan, data["source"], tuple(points[:-1]), points[-1], data["looked"],
                       data["failed"], tuple(data["protocols"]), {name: tuple(order) for name, order in data["orders"].items()},
                       dict(data["seconds"]), dict(data["environment"]), data["interrupted"], beside, data["weights"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{file}: is damaged ({type(error).__name__}: {error}). Search again.") from None


def _point(row: Mapping[str, Any]) -> Point:
    return Point(tuple(row["candidate"]), tuple(row["values"]), tuple(row["held_out"]), row["dominated"], row.get("resource", 0))
