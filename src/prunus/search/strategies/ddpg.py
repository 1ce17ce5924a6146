"""Deterministic policy gradient, one move per unit (SparsitySolver; Lillicrap et al. 2016)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy

from ...allocation import Per
from .. import agents

__all__ = ["DDPG"]


@dataclass(frozen=True)
class DDPG:
    """The agent of Stable-Baselines3 with the defaults of AMC (He et al. 2018), the closest ancestor whose settings are known."""

    per: Per = "block"  # what a move gives a share to: matrix, sublayer or block
    width: float = 0.2  # largest departure of a share from what the search begins with
    reward: agents.Reward = "difference"  # difference, ratio, local or terminal
    features: tuple[agents.Feature, ...] = ()  # of the state, beside the share that has gone: depth, remaining, size, error, unit
    scale: float = 1.0  # factor on rewards
    share: float = 0.125  # of the search text that an episode is valued on; the best ones are valued on all of it
    warm_up: int = 10  # episodes of random moves
    noise: float = 0.5  # standard deviation of what is added to a move, on its scale from -1 to 1
    learning_rate: float = 1e-3  # of Adam
    discount: float = 1.0  # gamma
    batch: int = 64  # moves per update, one update per move

    dense_level: ClassVar[bool] = True
    needs_errors = property(agents.needs_errors)
    def __post_init__(self) -> None:
        agents.check(self)

    init, ask, tell = agents.begin, staticmethod(agents.ask), staticmethod(agents.tell)

    def agent(self, library: Any, environment: Any, seed: int) -> Any:
        """What learns; called in a thread of its own."""
        from stable_baselines3.common.noise import NormalActionNoise

        noise = NormalActionNoise(numpy.zeros(1), numpy.full(1, self.noise))
        return library.DDPG("MlpPolicy", environment, learning_rate=self.learning_rate, buffer_size=100_000, batch_size=self.batch,
                            learning_starts=self.warm_up * len(environment.units), gamma=self.discount, tau=0.01,
                            action_noise=noise, seed=seed, device="cpu", policy_kwargs={"net_arch": [300, 300]})
