"""Seconds of a forward pass of any sub-network, added up from branches that were measured at some widths."""

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Int
from torch import Tensor

from ..calibration.blocks import States, enter, evaluating
from ..calibration.placement import Placement
from ..errors import LoadError, RecipeError
from ..silence import silenced
from ..sites import Anatomy, Block, ChannelSite
from ..speed import in_turn
from ..surgery.cut import cut
from ..traits import uncached
from .subnetwork import Kept, Units

__all__ = ["Latency"]

_REPETITIONS = 6  # rounds


@dataclass(frozen=True)
class Latency:
    """What sub-networks of one model take on this machine, for a batch of one shape.

    A branch with k channels takes what its block takes with k less what it takes without the branch: measured for some k and
    interpolated between them, once for all blocks that are alike. What is left of the dense model's seconds stays the same.
    """

    rest: float  # seconds of the dense model that are not its branches'
    branches: Mapping[str, tuple[tuple[int, float], ...]]  # by channel site: channels and seconds, ascending from 0
    batch: tuple[int, int]  # sequences, and tokens of each
    place: str  # device and numbers

    @classmethod
    @torch.no_grad()
    def measured(cls, model: Any, units: Units, tokens: Int[Tensor, "batch length"], points: int = 6) -> "Latency":
        """At `points` widths of every branch that differ, and at its full one, in turn. Copies one block at a time."""
        alike: dict[tuple[Any, ...], tuple[tuple[int, float], ...]] = {}
        found: dict[str, tuple[tuple[int, float], ...]] = {}
        with evaluating(model), ExitStack() as stack:
            states = enter(model, units.anatomy, tokens, Placement.of(model), len(tokens), stack)
            for depth, block in enumerate(units.anatomy.blocks):
                sites = [site for site in units.sites if site.block == depth]
                kind = tuple((site.count, site.size) for site in sites)
                for place, site in enumerate(sites):
                    if (*kind, place) not in alike:
                        alike[*kind, place] = _branch(model, units.anatomy, block, depth, site, states, points)
                    found[site.name] = alike[*kind, place]
            whole = in_turn([lambda: model(input_ids=tokens.to(states.device), **uncached(model))], states.device, _REPETITIONS)[0]
        rest = whole - sum(rows[-1][1] for rows in found.values())
        return cls(max(rest, 0.0), found, (tokens.shape[0], tokens.shape[1]), cls.place_of(model))

    @staticmethod
    def place_of(model: Any) -> str:
        """Where a model computes, and in which numbers."""
        weight = next(model.parameters())
        return f"{weight.device}, {weight.dtype}"

    def write(self, file: Path) -> None:
        """For a search that goes on later: its values have to be the same."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path, batch: tuple[int, int], place: str) -> "Latency | None":
        """What was written; None where nothing was. Raises LoadError, and RecipeError where batches had another shape, or were elsewhere:
        the two are no latencies of one search."""
        if not file.is_file():
            return None
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            branches = {name: tuple((int(count), float(seconds)) for count, seconds in rows) for name, rows in data["branches"].items()}
            found = cls(float(data["rest"]), branches, tuple(data["batch"]), str(data["place"]))
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(f"{file}: is damaged ({type(error).__name__}: {error}). Delete it, and the trials beside it.") from None
        for what, there, here in (("batches", found.batch, batch), ("place", found.place, place)):
            if there != here:
                raise RecipeError(f"{file}: holds latencies of another search ({what} = {there}, here {here}). Name another folder, or "
                                  "delete this one.")
        return found

    def seconds(self, kept: Kept) -> float:
        """Of a forward pass of the sub-network."""
        total = self.rest
        for name, rows in self.branches.items():
            counts, seconds = zip(*rows, strict=True)
            total += float(numpy.interp(int(kept[name].sum()), counts, seconds))
        return total

    @property
    def dense(self) -> float:
        """Seconds of the dense model."""
        return self.rest + sum(rows[-1][1] for rows in self.branches.values())


def _branch(model: Any, anatomy: Anatomy, block: Block, depth: int, site: ChannelSite, states: States,
            points: int) -> tuple[tuple[int, float], ...]:
    """Seconds of one branch, with some numbers of channels."""
    counts = sorted({max(1, round(site.count * step / points)) for step in range(1, points + 1)})
    narrow = [_narrowed(model, anatomy, block, site, count) for count in counts]
    branch = next(other for other in block.branches if other.name == site.branch)

    def without() -> None:
        with silenced(model, [branch]):
            states.run(model.get_submodule(block.name), depth, slice(0, states.batch))

    runs: list[Callable[[], Any]] = [without]
    runs += [partial(states.run, module, depth, slice(0, states.batch)) for module in narrow]
    base, *others = in_turn(runs, states.device, _REPETITIONS)
    rising = numpy.maximum.accumulate([0.0, *(seconds - base for seconds in others)])  # a wider branch is no faster
    return tuple(zip([0, *counts], map(float, rising), strict=True))


def _narrowed(model: Any, anatomy: Anatomy, block: Block, site: ChannelSite, count: int) -> Any:
    """A block whose branch has only some channels; everything but this block is shared with the model, not copied."""
    own = model.get_submodule(block.name)
    shared = {id(module): module for name, module in model.named_modules() if module is not model and module is not own
              and not name.startswith(f"{block.name}.") and not block.name.startswith(f"{name}.")}
    small = copy.deepcopy(model, shared)
    mask = torch.zeros(site.count, dtype=torch.bool)
    mask[:count] = True
    cut(small, anatomy, {site.name: mask})
    return small.get_submodule(block.name)
