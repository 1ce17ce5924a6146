"""How much may remain, and how much each site gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import RecipeError
from .sites import Site

__all__ = ["Allocation", "Budget", "limit_of"]

Allocation = Mapping[str, float]  # site name -> sparsity


@dataclass(frozen=True)
class Budget:
    """At most `limit` of the sites' weights may remain."""

    limit: float  # fraction kept, in (0, 1]

    def __post_init__(self) -> None:
        if not 0 < self.limit <= 1:
            hint = f" Did you mean {self.limit / 100:g}?" if 1 < self.limit <= 100 else ""
            raise RecipeError(f"budget.limit = {self.limit:g}: expected the fraction of weights kept, in (0, 1].{hint}")

    @property
    def sparsity(self) -> float:
        """The fraction that must go."""
        return round(1 - self.limit, 12)

    def remaining(self, sites: Sequence[Site], allocation: Allocation) -> float:
        """The fraction of the sites' weights that stays, each site counted by its size."""
        total = sum(site.size for site in sites)
        return sum(site.size * (1 - allocation[site.name]) for site in sites) / total

    def met(self, sites: Sequence[Site], allocation: Allocation) -> bool:
        """Whether the budget is kept, to rounding."""
        return self.remaining(sites, allocation) <= self.limit + 1e-9


def limit_of(sparsity: float, where: str) -> float:
    """The fraction kept, from the fraction removed; `where` is how an error begins. Raises RecipeError."""
    if not 0 <= sparsity < 1:
        hint = f" Did you mean {sparsity / 100:g}?" if 1 <= sparsity < 100 else ""
        raise RecipeError(f"{where} {sparsity:g}: expected the fraction of weights removed, in [0, 1).{hint}")
    return round(1 - sparsity, 12)
