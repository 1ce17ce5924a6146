"""Criteria: how much each weight of a matrix matters. One file each; the file name is the name."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, LossNeeds, Needs

__all__ = ["Criterion", "loss_needs", "saliency"]


@runtime_checkable
class Criterion(Protocol):
    """Computes saliencies: larger = keep.

    A frozen dataclass whose fields are its hyper-parameters. `saliency` takes a weight (out, in) and the
    statistics of its inputs, changes neither, and gives finite values that are never negative.
    One that wants to know of the loss has `loss_needs`, as an allocator has, and is given the answer as a third argument:
    LossStats of the matrix or, with `channels`, ChannelLoss of the site whose channels the matrix reads.
    """

    scope: ClassVar[str]  # where its paper lets saliencies compete: "row" or "matrix"

    @property
    def needs(self) -> Needs:
        """The least statistics it can live on."""
        ...

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        """How much each weight matters."""
        ...


def loss_needs(plugin: Any) -> LossNeeds | None:
    """What a criterion, or a solver, wants to know of the loss; None where it says nothing of it."""
    found: LossNeeds | None = getattr(plugin, "loss_needs", None)
    return found


def saliency(criterion: Any, weight: Float[Tensor, "out in"], stats: InputStats, loss: Any) -> Float[Tensor, "out in"]:
    """A criterion's saliencies; `loss` is for those that ask for it."""
    found: Tensor = criterion.saliency(weight, stats, loss) if loss_needs(criterion) else criterion.saliency(weight, stats)
    return found
