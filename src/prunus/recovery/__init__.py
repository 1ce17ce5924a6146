"""Recoveries: repair what is kept of a model. One file each; the file name is the name."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from ..calibration.placement import Placement
from ..sites import Anatomy, SublayerSite

__all__ = ["Recovery"]


@runtime_checkable
class Recovery(Protocol):
    """Changes weights that are kept, so that the model does without what goes.

    A frozen dataclass whose fields are its hyper-parameters. `recover` is called while the branches `gone` are still there;
    it neither removes them nor changes a shape, and weights that are zero stay zero.
    """

    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], tokens: Int[Tensor, "samples length"],
                placement: Placement, batch: int) -> None:
        """Repair in place. Raises CalibrationError when the calibration tokens cannot be used, RecipeError for a family it
        cannot repair."""
        ...
