"""What a sub-network costs and what it is worth: numbers of which smaller is better."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import RecipeError, UnknownName
from ..surgery.cut import check_left
from ..traits import model_bytes
from .latency import Latency
from .subnetwork import Kept, Units
from .thin import DENSE, Levels

__all__ = ["COSTS", "QUALITIES", "Judge", "Quality", "check_objectives"]

QUALITIES = ("error", "loss", "divergence")
COSTS = ("params", "flops", "latency", "memory")  # all as shares of the dense model's

Quality = Callable[[Kept, Levels, int], Mapping[str, float]]  # of a sub-network, by name; after the training that a resource stands for


def check_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """At least two, all known and none twice. Raises RecipeError or UnknownName."""
    for name in names:
        if name not in QUALITIES + COSTS:
            raise UnknownName("objectives", name, list(QUALITIES + COSTS))
    if len(set(names)) < len(names) or len(names) < 2:
        raise RecipeError(f"objectives = {', '.join(names)}: expected at least two, none of them twice.")
    return tuple(names)


@dataclass(frozen=True, eq=False)
class Judge:
    """Values sub-networks of one model by several objectives."""

    model: Any
    units: Units
    names: tuple[str, ...]
    quality: Quality  # those of QUALITIES that are asked for, on the search's own text or task
    length: int  # tokens of a sequence, for the work of attention
    latency: Latency | None = None  # where it is asked for

    def __call__(self, kept: Kept, levels: Levels = DENSE, resource: int = 0) -> tuple[float, ...]:
        """In the order of `names`, after the training that a resource stands for. Weights that are 0 count in "params" alone: they are
        stored, and computed with. Raises RecipeError for what could not be extracted."""
        check_left(self.units.anatomy, [site.branch for site in self.units.sites if not kept[site.name].any()])
        known = dict(self.quality(kept, levels, resource)) if set(self.names) & set(QUALITIES) else {}
        known |= {name: self._cost(name, kept, levels) for name in self.names if name in COSTS}
        return tuple(float(known[name]) for name in self.names)

    def told(self, kept: Kept, levels: Levels = DENSE) -> tuple[float | None, ...]:
        """The same without a look at the sub-network: None in the place of a quality."""
        return tuple(self._cost(name, kept, levels) if name in COSTS else None for name in self.names)

    def _cost(self, name: str, kept: Kept, levels: Levels) -> float:
        units = self.units
        match name:
            case "params":
                return units.remaining(kept, levels)
            case "flops":
                return flops(units, kept, self.length) / self._flops
            case "latency":
                assert self.latency is not None
                return self.latency.seconds(kept) / self.latency.dense
            case _:  # memory of the weights, embeddings and head included
                dense = model_bytes(self.model)
                gone = (1 - units.remaining(kept)) * units.size * next(self.model.parameters()).element_size()
                return (dense - gone) / dense

    @cached_property
    def _flops(self) -> float:
        """Of the dense model."""
        return flops(self.units, {site.name: self.units.first(site, site.count) for site in self.units.sites}, self.length)


def flops(units: Units, kept: Kept, length: int) -> float:
    """Multiplications and additions of the branches for one token of a sequence of `length`: two for every weight that is left, and
    four per channel and token that attention looks at (scores and sums; all of them, masked or not)."""
    total = 0.0
    for site in units.sites:
        share = int(kept[site.name].count_nonzero()) / site.count
        total += share * (2 * site.size + (4 * length * site.count * site.width if units.attends(site) else 0))
    return total
