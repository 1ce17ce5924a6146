"""Quantisers: which code of a grid every weight of a matrix becomes. One file each; the file name is the name."""

from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..quantisation import Grid, Rounded
from ..stats import InputStats, Needs

__all__ = ["Quantiser"]


@runtime_checkable
class Quantiser(Protocol):
    """Puts the weights of one matrix on a grid.

    A frozen dataclass whose fields are its hyper-parameters. `quantise` is pure: it never writes to what it is given and gives
    the same answer to the same matrix. Where `mask` (True = kept) is False the answer is exactly 0, and a row's answer does not
    depend on other rows, so that matrices with the same inputs may be given as one. The grid's groups fill the rows.
    Raises CalibrationError, naming the site, when the statistics cannot be used.
    """

    needs: ClassVar[Needs]  # the least statistics it can live on

    def quantise(self, weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], grid: Grid, stats: InputStats,
                 scales: torch.dtype = torch.float32) -> Rounded:
        """The codes; every scale is a number of the dtype `scales`."""
        ...
