"""Proximal policy optimisation, one move per unit (SparsitySolver; Schulman et al. 2017)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ...allocation import Per
from .. import agents

__all__ = ["PPO"]


@dataclass(frozen=True)
class PPO:
    """The agent of Stable-Baselines3 in the environment of `search.pruning_env`; the paper names no algorithm and no settings."""

    per: Per = "block"  # what a move gives a share to: matrix, sublayer or block
    width: float = 0.2  # largest departure of a share from what the search begins with
    reward: agents.Reward = "difference"  # difference, ratio, local or terminal
    features: tuple[agents.Feature, ...] = ()  # of the state, beside the share that has gone: depth, remaining, size, error, unit
    scale: float = 1.0  # factor on rewards
    share: float = 0.125  # of the search text that an episode is valued on; the best ones are valued on all of it
    episodes: int = 8  # per update
    epochs: int = 10  # passes over them per update
    batches: int = 4  # gradient steps per pass
    learning_rate: float = 3e-3  # of Adam
    deviation: float = 0.3  # of moves from the policy's mean, at first, on the scale from -1 to 1
    discount: float = 1.0  # gamma
    smoothing: float = 1.0  # lambda of the generalised advantage
    entropy: float = 0.0  # weight of the policy's entropy

    dense_level: ClassVar[bool] = True
    needs_errors = property(agents.needs_errors)
    def __post_init__(self) -> None:
        agents.check(self)

    init, ask, tell = agents.begin, staticmethod(agents.ask), staticmethod(agents.tell)

    def agent(self, library: Any, environment: Any, seed: int) -> Any:
        """What learns; called in a thread of its own."""
        steps = self.episodes * len(environment.units)
        return library.PPO("MlpPolicy", environment, learning_rate=self.learning_rate, n_steps=steps,
                           batch_size=-(-steps // self.batches), n_epochs=self.epochs, gamma=self.discount,
                           gae_lambda=self.smoothing, clip_range=0.2, ent_coef=self.entropy, seed=seed, device="cpu",
                           policy_kwargs={"net_arch": [64, 64], "log_std_init": math.log(self.deviation)})
