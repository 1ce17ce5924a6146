"""Weights on a grid: codes of a few bits, and scales that neighbouring inputs share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from .errors import RecipeError

__all__ = ["BITS", "Grid", "Rounded"]

BITS = (4, 8)


@dataclass(frozen=True)
class Grid:
    """Which numbers weights may be: in every group of a row a scale times the whole numbers from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1.

    0 is always one of them. Grids that are not symmetric around it are left out: transformers 5.23 loads no such file.
    """

    bits: int = 4  # of a weight: 4 or 8
    group: int = 64  # neighbouring inputs that share a scale; 0: a whole row does

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise RecipeError(f"bits = {self.bits}: expected {' or '.join(map(str, BITS))}.")
        if self.group < 0:
            raise RecipeError(f"group = {self.group}: expected at least 1 input, or 0 for a whole row.")

    def __str__(self) -> str:
        return f"int{self.bits} {f'in groups of {self.group}' if self.group else 'by row'}"

    def check(self, inputs: int, name: str) -> None:
        """Refuse groups that do not fill a row. Raises RecipeError that names the matrix and groups that do."""
        if self.group and inputs % self.group:
            fit = [size for size in (128, 64, 32, 16) if inputs % size == 0]
            raise RecipeError(f"group = {self.group}: {name} has {inputs} inputs, which such groups do not fill. Use "
                              f"{' or '.join(map(str, fit)) or 'a divisor'}, or 0 for whole rows.")

    def width(self, inputs: int) -> int:
        """Inputs that share a scale, of a row of so many."""
        return self.group or inputs

    def fit(self, weight: Float[Tensor, "out group"], scales: torch.dtype = torch.float32) -> Float[Tensor, "out"]:
        """The scale of every row of one group, rounded to what a file will hold, in float32: as small as it can be with no weight
        further than half a step from a code."""
        scale = (weight.abs().amax(1) * (2 / (2**self.bits - 1))).to(scales).float()
        return torch.where(scale > 0, scale, 1.0)

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The nearest code of every weight, in float32; scales are broadcast."""
        most = 2 ** (self.bits - 1) - 1
        return (weight / scale).round().clamp(-most, most)


@dataclass(frozen=True)
class Rounded:
    """One matrix on a grid."""

    codes: Int8[Tensor, "out in"]
    scale: Float[Tensor, "out groups"]

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """code * scale, as programs that read the codes compute it."""
        return self.codes * self.scale.repeat_interleave(self.codes.shape[1] // self.scale.shape[1], 1)

    def rows(self, start: int, stop: int) -> "Rounded":
        """Of some of its rows."""
        return Rounded(self.codes[start:stop], self.scale[start:stop])
