"""One matrix to prune, and the answer."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .errors import CalibrationError
from .granularity import Granularity
from .stats import ChannelLoss, InputStats, LossStats, finite

__all__ = ["LayerProblem", "LayerSolution", "check_finite", "check_weights"]


@dataclass(frozen=True)
class LayerProblem:
    """Prune `weight` to `sparsity` in the shape of `granularity`, given what its inputs looked like."""

    weight: Float[Tensor, "out in"]  # a float32 COPY; solvers may read it, never write it
    stats: InputStats
    granularity: Granularity  # its scope is resolved: row or matrix, never native
    sparsity: float  # fraction removed, in [0, 1)
    name: str = "weight"  # the site, for messages
    loss: LossStats | ChannelLoss | None = None  # how the loss depends on it, where the solver asks for that
    ranking: Float[Tensor, "in"] | None = None  # which inputs are to stay first, where that is decided already

    def error(self, weight: Float[Tensor, "out in"]) -> float | None:
        """||(W - W') X||^2 / ||W X||^2 of a candidate W' (ALPS, section 4); None when there is no Gram.

        0 when the layer's output is 0 whatever the weights.
        """
        if self.stats.needs != "gram":
            return None
        lost, whole = self.stats.energy(self.weight - weight), self.stats.energy(self.weight)
        return max(lost, 0.0) / whole if whole > 0 else 0.0

    def shift(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out"]:
        """E[(W - W') x] of a candidate W': what a bias has to add for the mean output to stay."""
        return (self.weight - weight) @ self.stats.mean

    def untouched(self) -> "LayerSolution":
        """The answer when nothing is to go: a copy, all of it kept."""
        return LayerSolution(self.weight.clone(), torch.ones_like(self.weight, dtype=torch.bool))

    def check(self) -> None:
        """Refuse numbers that no solver can use. Raises CalibrationError that names the site."""
        check_finite(self.weight, self.name)
        if self.stats.needs != "nothing":
            self.stats.check()


_DAMAGED = "The checkpoint is damaged; load an intact one."


def check_finite(weight: Tensor, name: str, advice: str = _DAMAGED) -> None:
    """Refuse a weight with infinite numbers or none at all. Raises CalibrationError that names the site."""
    if not finite(weight):
        bad = int((~torch.isfinite(weight)).sum())
        raise CalibrationError(f"{name}: {bad} of its {weight.numel()} weights are not finite. {advice}")


def check_weights(model: nn.Module, advice: str = _DAMAGED) -> None:
    """Refuse a model of which one parameter, whatever it is, has such a weight. Raises CalibrationError that names it."""
    for name, parameter in model.named_parameters():
        check_finite(parameter.detach(), name, advice)


@dataclass(frozen=True)
class LayerSolution:
    """What stays, and what it becomes; `weight` is 0 wherever `mask` is False."""

    weight: Float[Tensor, "out in"]
    mask: Bool[Tensor, "out in"]  # True = kept
    bias: Float[Tensor, "out"] | None = None  # added to the layer's bias, if the solver compensates and the layer has one
