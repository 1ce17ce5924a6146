"""Soft actor-critic, one move per unit (SparsitySolver; Haarnoja et al. 2018)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ...allocation import Per
from .. import agents

__all__ = ["SAC"]


@dataclass(frozen=True)
class SAC:
    """The agent of Stable-Baselines3 in the environment of `search.pruning_env`; its entropy is weighted by itself."""

    per: Per = "block"  # what a move gives a share to: matrix, sublayer or block
    width: float = 0.2  # largest departure of a share from what the search begins with
    reward: agents.Reward = "difference"  # difference, ratio, local or terminal
    features: tuple[agents.Feature, ...] = ()  # of the state, beside the share that has gone: depth, remaining, size, error, unit
    scale: float = 1.0  # factor on rewards
    share: float = 0.125  # of the search text that an episode is valued on; the best ones are valued on all of it
    warm_up: int = 10  # episodes of random moves
    learning_rate: float = 3e-4  # of Adam
    discount: float = 1.0  # gamma
    batch: int = 64  # moves per update, one update per move

    dense_level: ClassVar[bool] = True
    needs_errors = property(agents.needs_errors)
    def __post_init__(self) -> None:
        agents.check(self)

    init, ask, tell = agents.begin, staticmethod(agents.ask), staticmethod(agents.tell)

    def agent(self, library: Any, environment: Any, seed: int) -> Any:
        """What learns; called in a thread of its own."""
        return library.SAC("MlpPolicy", environment, learning_rate=self.learning_rate, buffer_size=100_000, batch_size=self.batch,
                           learning_starts=self.warm_up * len(environment.units), gamma=self.discount, seed=seed, device="cpu",
                           policy_kwargs={"net_arch": [64, 64]})
