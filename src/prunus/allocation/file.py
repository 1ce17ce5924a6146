"""The shares that a file states: those of an earlier allocation or search, or one's own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..budget import Allocation, Budget
from ..errors import RecipeError
from ..granularity import Granularity
from ..sites import Site
from ..stats import InputStats, LossStats, Needs
from . import reach

__all__ = ["File"]


@dataclass(frozen=True)
class File:
    """An `allocation.json`: a table of sparsities by site, or a list of such tables, of which the first that names all sites
    counts. The budget must be met by it; nothing is moved to meet it.
    """

    path: str = "allocation.json"  # relative to the working folder

    needs: ClassVar[Needs] = "nothing"
    loss_needs: ClassVar[None] = None

    def measure(self, site: Site, weight: Tensor, stats: InputStats, loss: LossStats | None) -> None:
        return None

    def allocate(self, sites: Sequence[Site], measured: Mapping[str, Any], budget: Budget,
                 granularity: Granularity) -> Allocation:
        tables = self._tables()
        missing = [[site.name for site in sites if site.name not in table] for table in tables]
        if not missing or min(map(len, missing)):
            closest = min(missing, key=len, default=[sites[0].name])
            raise RecipeError(f"{self.path}: says nothing about {closest[0]}"
                              f"{f' and {len(closest) - 1} other sites' if len(closest) > 1 else ''}. Is it of another model or kind "
                              "of site?")
        table = tables[[len(names) for names in missing].index(0)]
        for site in sites:
            if not isinstance(table[site.name], int | float) or not 0 <= table[site.name] <= 1:
                raise RecipeError(f"{self.path}: {site.name} = {table[site.name]!r}: expected a sparsity in [0, 1].")
        shares = {site.name: float(table[site.name]) for site in sites}
        left = budget.remaining(sites, {site.name: reach(site, shares[site.name], granularity) for site in sites})
        if left > budget.limit + 1e-9:
            raise RecipeError(f"{self.path}: removes {1 - left:.6f} of the weights, but the budget asks for {budget.sparsity:g}. "
                              f"Name another file, or --sparsity {int((1 - left) * 1e6) / 1e6:g}.")
        return shares

    def _tables(self) -> list[dict[str, Any]]:
        try:
            data = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{self.path}: cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise RecipeError(f"{self.path}: not valid JSON: {error}.") from None
        tables = data if isinstance(data, list) else [data]
        if not all(isinstance(table, dict) for table in tables):
            raise RecipeError(f"{self.path}: expected a table of sparsities by site, or a list of such tables.")
        return tables
