"""What a folder says of the super-network in it: with which space, in which order of channels and how it was trained."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .calibration.tasks import Task
from .errors import LoadError, RecipeError
from .recipe import build, plain
from .search.spaces import ArchitectureSpace
from .search.spaces.medium import Medium
from .search.spaces.mixed import Mixed

__all__ = ["SuperNet", "check_trained"]

_FILE = "supernet.json"


@dataclass(frozen=True)
class SuperNet:
    """A model whose sub-networks were trained."""

    space: ArchitectureSpace
    orders: Mapping[str, tuple[int, ...]]  # of channels, by site; none: as they are
    training: Mapping[str, Any]  # strategy, settings, task, losses and seconds, as plain data

    @classmethod
    def of(cls, source: str) -> "SuperNet | None":
        """That of a folder; None where nothing was trained. Raises LoadError."""
        file = Path(source).expanduser() / _FILE
        if not file.is_file():
            return None
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            orders = {name: tuple(map(int, order)) for name, order in data["orders"].items()}
            known = data["training"].get("task")
            if known is not None and not {"corpus", "seed", "rows"} <= set(known):
                raise KeyError("task")
            return cls(build(ArchitectureSpace, data["space"], str(file)), orders, data["training"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{file}: is damaged ({type(error).__name__}: {error}). Train the super-network again.") from None

    def write(self, folder: Path) -> None:
        """Beside the weights."""
        data = {"space": plain(self.space), "orders": {name: list(order) for name, order in self.orders.items()},
                "training": dict(self.training)}
        (folder / _FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def check(self, space: ArchitectureSpace, task: Task | None = None) -> None:
        """Refuse another space: its sub-networks were not trained; but for their sparsity, those of `mixed` are those of `medium`. And
        another split of the task: what is searched on would have been trained on. Raises RecipeError."""
        if (Medium(space.steps) if isinstance(space, Mixed) else space) != self.space:
            raise RecipeError(f"space {plain(space)}: the super-network was trained with {plain(self.space)}, whose sub-networks are "
                              "others. Search in that space, or train again.")

        known = self.training.get("task") or {}
        for name, asked in (("seed", task.seed), ("rows", task.rows)) if task and known.get("corpus") == task.corpus else ():
            if known[name] != asked:
                raise RecipeError(f"task {known['corpus']}: {name} = {asked}, and the model was trained with {known[name]}: what is "
                                  f"searched on would have been trained on. Say --task {known['corpus']},{name}={known[name]}.")


def check_trained(space: ArchitectureSpace) -> None:
    """Refuse a space whose sub-networks do not share weights that can be trained. Raises RecipeError."""
    if isinstance(space, Mixed):
        raise RecipeError(f"space mixed: weights that a solver has changed are not trained together. Train with --space "
                          f"medium,steps={space.steps}, and search what is trained with --space mixed,steps={space.steps}.")
