"""Pruning as a game of one move per unit, for agents that learn by reinforcement (SparsitySolver's environment)."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy
from numpy.typing import NDArray

from ..allocation import Per, group_of
from ..errors import RecipeError
from .agents import Feature, Reward
from .space import Candidate, Space

__all__ = ["PruningEnv"]

Array = NDArray[numpy.float32]


class PruningEnv(gymnasium.Env[Array, Array]):
    """An episode goes once through the units (blocks, sublayers or matrices), from the input up.

    State: the share of all weights that has gone so far, as in the paper; `features` adds the unit's depth, the share that
    each unit left must give on average, the unit's size, and its mean error at the budget's sparsity. Action: one number in
    [-1, 1], mapped to a sparsity within `width` of the budget's and clipped so that the units left can still make up for it:
    the shares of an episode meet the budget exactly. The candidate is made of the nearest levels.

    Rewards, with v_t the divergence from the dense model after t units, and v_0 = 0:
    difference: v_(t-1) - v_t, whose sum is -v_T whatever the path, so that the best policy is that of the sparse reward;
    ratio: exp(-v_t), perplexity of the dense model over that of the pruned one, up to the text's entropy;
    local: minus the unit's own reconstruction error, for which no model is run; terminal: -v_T at the end, 0 before.
    Weights are restored by pointing back to the dense ones: nothing is copied between steps.
    """

    def __init__(self, space: Space, value: Callable[[Candidate, bool], float], per: Per = "block", width: float = 0.2,
                 reward: Reward = "difference", features: tuple[Feature, ...] = ()) -> None:
        if space.levels[0] != 0:
            raise RecipeError("levels: expected 0 among them, for the units that an episode has not come to yet.")
        if reward == "local" and not space.errors:
            raise RecipeError("reward = 'local' needs the error of every site; solve with a solver that needs a Gram matrix.")
        self.space, self.value, self.reward, self.features = space, value, reward, features
        groups = list(dict.fromkeys(group_of(site, per) for site in space.sites))
        self.units = [[index for index, site in enumerate(space.sites) if group_of(site, per) == group] for group in groups]
        self.sizes = [sum(space.sites[index].size for index in unit) for unit in self.units]
        asked = space.budget.sparsity
        self.low, self.high = max(asked - width, 0.0), min(asked + width, space.levels[-1])
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), numpy.float32)
        self.observation_space = gymnasium.spaces.Box(-numpy.inf, numpy.inf, (1 + len(features),), numpy.float32)
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
        return self._observe(), reward, ended, False, {"candidate": candidate, "sparsity": self.shares[-1]}

    @property
    def gone(self) -> float:
        """Weights that have gone."""
        return sum((share * size for share, size in zip(self.shares, self.sizes, strict=False)), 0.0)

    def _clipped(self, action: float) -> float:
        """The sparsity that an action stands for, as near as the budget allows."""
        unit = len(self.shares)
        size, rest = self.sizes[unit], sum(self.sizes[unit + 1 :])
        need = self.space.required - self.gone
        asked = self.low + (self.high - self.low) * (min(max(action, -1.0), 1.0) + 1) / 2
        least, most = max(self.low, (need - self.high * rest) / size), min(self.high, (need - self.low * rest) / size)
        return min(max(asked, least), most)

    def _candidate(self, ended: bool) -> Candidate:
        """The nearest levels; units to come are dense. A whole candidate meets the budget."""
        shares = {self.space.sites[index].name: share for unit, share in zip(self.units, self.shares, strict=False) for index in unit}
        if ended:
            return self.space.nearest(shares)
        levels = self.space.levels
        return tuple(min(range(len(levels)), key=lambda level: abs(levels[level] - shares.get(site.name, 0.0)))
                     for site in self.space.sites)

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
        return numpy.array([self.gone / total, *(found[feature] for feature in self.features)], numpy.float32)

    def _error(self, unit: int) -> float:
        """The logarithm of the unit's mean error at the level nearest to the budget's sparsity."""
        if not self.space.errors:
            raise RecipeError("feature 'error' needs the error of every site; solve with a solver that needs a Gram matrix.")
        levels, asked = self.space.levels, self.space.budget.sparsity
        nearest = min(range(len(levels)), key=lambda level: abs(levels[level] - asked))
        errors = [self.space.errors[index][nearest] for index in self.units[unit]]
        return float(numpy.log(max(sum(errors) / len(errors), 1e-9)))
