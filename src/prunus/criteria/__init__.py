"""Criteria: how much each weight of a matrix matters. One file each; the file name is the name."""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..stats import InputStats, Needs

__all__ = ["Criterion"]


@runtime_checkable
class Criterion(Protocol):
    """Computes saliencies: larger = keep.

    A frozen dataclass whose fields are its hyper-parameters. `saliency` takes a weight (out, in) and the
    statistics of its inputs, changes neither, and gives finite values that are never negative.
    """

    scope: ClassVar[str]  # where its paper lets saliencies compete: "row" or "matrix"

    @property
    def needs(self) -> Needs:
        """The least statistics it can live on."""
        ...

    def saliency(self, weight: Float[Tensor, "out in"], stats: InputStats) -> Float[Tensor, "out in"]:
        """How much each weight matters."""
        ...
