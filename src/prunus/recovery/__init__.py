"""Recoveries: repair what is kept of a model. One file each; the file name is the name."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from ..calibration.pair import Watch, unwatched
from ..calibration.placement import Placement
from ..sites import Anatomy, SublayerSite

__all__ = ["Recovery"]


@runtime_checkable
class Recovery(Protocol):
    """Changes weights that are kept, so that the model does without what goes.

    A frozen dataclass whose fields are its hyper-parameters. `recover` is called while all branches are still there, those `gone` too,
    and all channels, those that have gone as zeros; it neither removes them nor changes a shape, and weights that are zero stay zero.
    `dense` are the parameters, by name, that have other values now than in the dense model, with those of the dense model.
    """

    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """Raises RecipeError for a family that `recover` cannot repair. The model is dense."""
        ...

    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> None:
        """Repair in place. `watch` is told a phase, what is done of it, and the total. Raises CalibrationError when the calibration
        tokens cannot be used."""
        ...
