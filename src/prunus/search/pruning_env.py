"""Pruning as a game of one move per unit, for agents that learn by reinforcement (SparsitySolver's environment)."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy
from numpy.typing import NDArray

from ..allocation import Per
from ..errors import RecipeError
from .agents import Feature, Reward
from .space import Candidate, Space

__all__ = ["PruningEnv"]

Array = NDArray[numpy.float32]


class PruningEnv(gymnasium.Env[Array, Array]):
    """An episode goes once through the units (blocks, sublayers or matrices), from the input up.

    State: the share of all weights that has gone so far, as in the paper; `features` adds the unit's depth, the share that
    each unit left must give on average, the unit's size, its mean error at the budget's sparsity, and which unit it is (one
    number per unit, of which one is 1). Action: one number in [-1, 1], mapped to a sparsity within `width` of the unit's in
    `first` (the budget's, where all begin alike) and clipped so that the units left can still make up for it: the shares of an
    episode meet the budget exactly. Within a unit the sites keep their distances. The candidate is made of the nearest levels.

    Rewards, with v_t the divergence from the dense model after t units, and v_0 = 0:
    difference: v_(t-1) - v_t, whose sum is -v_T whatever the path, so that the best policy is that of the sparse reward;
    ratio: exp(-v_t), perplexity of the dense model over that of the pruned one, up to the text's entropy;
    local: minus the unit's own reconstruction error, for which no model is run; terminal: -v_T at the end, 0 before;
    each times `scale`.
    Weights are restored by pointing back to the dense ones: nothing is copied between steps.
    """

    def __init__(self, space: Space, value: Callable[[Candidate, bool], float], first: Candidate, per: Per = "block",
                 width: float = 0.2, reward: Reward = "difference", features: tuple[Feature, ...] = (), scale: float = 1.0) -> None:
        if space.levels[0] != 0:
            raise RecipeError("levels: expected 0 among them, for the units that an episode has not come to yet.")
        if reward == "local" and not space.errors:
            raise RecipeError("reward = 'local' needs the error of every site; solve with a solver that needs a Gram matrix.")
        self.space, self.value, self.reward, self.features, self.scale = space, value, reward, features, scale
        self.units = space.groups(per)
        self.sizes = [sum(space.sites[index].size for index in unit) for unit in self.units]
        self.first = space.shares(first)
        self.middles = [sum(self.first[index] * space.sites[index].size for index in unit) / size
                        for unit, size in zip(self.units, self.sizes, strict=True)]
        self.bounds = [(max(middle - width, 0.0), min(middle + width, space.levels[-1])) for middle in self.middles]
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), numpy.float32)
        seen = 1 + len(features) + ("unit" in features) * (len(self.units) - 1)
        self.observation_space = gymnasium.spaces.Box(-numpy.inf, numpy.inf, (seen,), numpy.float32)
        self.shares: list[float] = []
        self.last = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode with the dense model."""
        super().reset(seed=seed)
        self.shares, self.last = [], 0.0
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Give the next unit its share."""
        self.shares.append(self._clipped(float(action[0])))
        ended = len(self.shares) == len(self.units)
        candidate = self._candidate(ended)
        reward = self._reward(candidate, ended)
        return self._observe(), self.scale * reward, ended, False, {"candidate": candidate, "sparsity": self.shares[-1]}

    @property
    def gone(self) -> float:
        """Weights that have gone."""
        return sum((share * size for share, size in zip(self.shares, self.sizes, strict=False)), 0.0)

    def _clipped(self, action: float) -> float:
        """The sparsity that an action stands for, as near as the budget allows."""
        unit = len(self.shares)
        low, high = self.bounds[unit]
        later = list(zip(self.sizes[unit + 1 :], self.bounds[unit + 1 :], strict=True))
        need = self.space.required - self.gone
        least = max(low, (need - sum(size * most for size, (_, most) in later)) / self.sizes[unit])
        most = min(high, (need - sum(size * least for size, (least, _) in later)) / self.sizes[unit])
        asked = self.middles[unit] + (high - self.middles[unit] if action > 0 else self.middles[unit] - low) * min(max(action, -1.0), 1.0)
        return min(max(asked, least), most)

    def _candidate(self, ended: bool) -> Candidate:
        """The nearest levels; units to come are dense. A whole candidate meets the budget."""
        shares = {self.space.sites[index].name: share + self.first[index] - middle
                  for unit, share, middle in zip(self.units, self.shares, self.middles, strict=False) for index in unit}
        if ended:
            return self.space.nearest(shares)
        return tuple(min(range(len(row)), key=lambda level: abs(row[level] / site.size - shares.get(site.name, 0.0)))
                     for site, row in zip(self.space.sites, self.space.gone, strict=True))

    def _reward(self, candidate: Candidate, ended: bool) -> float:
        if self.reward == "local":
            unit = self.units[len(self.shares) - 1]
            if ended:
                self.value(candidate, False)  # so that the search knows what the episode came to
            errors = [self.space.errors[index][candidate[index]] * self.space.sites[index].size for index in unit]
            return -sum(errors) / self.sizes[len(self.shares) - 1]
        if self.reward == "terminal" and not ended:
            return 0.0
        before, self.last = self.last, min(self.value(candidate, not ended), 100.0)
        if self.reward == "difference":
            return before - self.last
        return float(numpy.exp(-self.last)) if self.reward == "ratio" else -self.last

    def _observe(self) -> Array:
        total, unit = sum(self.sizes), min(len(self.shares), len(self.units) - 1)
        found = {
            "depth": unit / len(self.units), "size": self.sizes[unit] / max(self.sizes),
            "remaining": (self.space.required - self.gone) / sum(self.sizes[unit:]) - self.space.budget.sparsity,
            "error": self._error(unit) if "error" in self.features else 0.0,
        }
        which = [float(other == unit) for other in range(len(self.units))]
        added = [number for feature in self.features for number in (which if feature == "unit" else [found[feature]])]
        return numpy.array([self.gone / total, *added], numpy.float32)

    def _error(self, unit: int) -> float:
        """The logarithm of the unit's mean error at the level nearest to the budget's sparsity."""
        if not self.space.errors:
            raise RecipeError("feature 'error' needs the error of every site; solve with a solver that needs a Gram matrix.")
        levels, asked = self.space.levels, self.space.budget.sparsity
        nearest = min(range(len(levels)), key=lambda level: abs(levels[level] - asked))
        errors = [self.space.errors[index][nearest] for index in self.units[unit]]
        return float(numpy.log(max(sum(errors) / len(errors), 1e-9)))
