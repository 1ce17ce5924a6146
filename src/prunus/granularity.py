"""The shapes that zeros may take, and the masks that keep the most salient weights within them."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import RecipeError

__all__ = ["NM", "Columns", "Granularity", "Tile", "Unstructured", "check_shape", "exchanged", "keep_mask", "snap"]

Scope = Literal["native", "row", "matrix"]


@dataclass(frozen=True)
class Unstructured:
    """Any weight may go."""

    scope: Scope = "native"  # where saliencies compete; native: as the solver's paper does

    def __post_init__(self) -> None:
        if self.scope not in ("native", "row", "matrix"):
            raise RecipeError(f"granularity.scope = {self.scope!r}: expected 'native', 'row' or 'matrix'.")

    def __str__(self) -> str:
        return "unstructured" if self.scope == "native" else f"unstructured:{self.scope}"


@dataclass(frozen=True)
class NM:
    """Keep `n` of every `m` consecutive inputs of each output."""

    n: int = 2  # kept …
    m: int = 4  # … of every m
    permute: bool = False  # first put inputs in the order in which most is kept, where what produces them can give them in it

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise RecipeError(f"granularity {self.n}:{self.m}: expected 0 < n <= m (n:m keeps n of every m inputs).")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}{',permute=true' if self.permute else ''}"


@dataclass(frozen=True)
class Tile:
    """Whole tiles of `rows` x `columns` weights go (the field's block sparsity)."""

    rows: int = 4  # outputs of a tile
    columns: int = 4  # inputs of a tile

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1:
            raise RecipeError(f"granularity tile:{self.rows}x{self.columns}: both sizes must be at least 1.")

    def __str__(self) -> str:
        return f"tile:{self.rows}x{self.columns}"


@dataclass(frozen=True)
class Columns:
    """Whole inputs go, `width` neighbours at a time, and so many that a multiple of `multiple` such groups stays."""

    width: int = 1  # neighbouring inputs that go together
    multiple: int = 1  # of the groups that stay
    nearest: bool = False  # whether counts are rounded to the nearest, and not up: of few groups, one more is much

    def __post_init__(self) -> None:
        if self.width < 1 or self.multiple < 1:
            raise RecipeError(f"granularity {self}: the width and the multiple must be at least 1.")

    def __str__(self) -> str:
        words = f"columns:{self.width}x{self.multiple}" if self.multiple > 1 else f"columns:{self.width}" if self.width > 1 else "columns"
        return f"{words},nearest=true" if self.nearest else words

    def removed(self, sparsity: float, inputs: int) -> int:
        """How many groups of a weight with so many inputs go; none where none is asked for."""
        groups = inputs // self.width
        if sparsity == 0:
            return 0
        stay = (1 - sparsity) * groups / self.multiple
        return groups - min(groups, math.floor(stay + 0.5 - 1e-6 if self.nearest else stay + 1e-6) * self.multiple)


Granularity = Unstructured | NM | Tile | Columns


def check_shape(shape: tuple[int, int], granularity: Granularity, where: str = "weight") -> None:
    """Refuse a granularity that does not tile a weight of `shape` (out, in). Raises RecipeError."""
    out, width = shape
    match granularity:
        case NM(n, m) if width % m:
            raise RecipeError(f"{where}: {n}:{m} needs a multiple of {m} inputs, found {width}. Skip it or use another m.")
        case Tile(rows, columns) if out % rows or width % columns:
            raise RecipeError(f"{where}: tiles of {rows}x{columns} do not divide its shape {out}x{width}. Skip it or use other tiles.")
        case Columns(group) if width % group:
            raise RecipeError(f"{where}: groups of {group} columns do not divide its {width} inputs. Skip it or use another number.")
        case _:
            pass


def removed_count(sparsity: float, size: int) -> int:
    """How many of `size` equal units go: the least whole number that is at least the fraction asked for."""
    return min(size, max(0, math.ceil(sparsity * size - 1e-6)))


def snap(sparsity: float, shape: tuple[int, int], granularity: Granularity) -> float:
    """The sparsity that `keep_mask` really reaches on a weight of `shape` (out, in)."""
    out, width = shape
    match granularity:
        case Unstructured("row"):
            return removed_count(sparsity, width) / width
        case Unstructured():
            return removed_count(sparsity, out * width) / (out * width)
        case NM(n, m):
            return 0.0 if sparsity == 0 else 1 - n / m
        case Tile(rows, columns):
            tiles = (out // rows) * (width // columns)
            return removed_count(sparsity, tiles) / tiles
        case Columns(group):
            return granularity.removed(sparsity, width) / (width // group)


def keep_mask(
    saliency: Float[Tensor, "out in"], sparsity: float, granularity: Granularity
) -> Bool[Tensor, "out in"]:
    """True for the weights to keep: the most salient, in exact numbers, ties decided by position.

    A tile's or a column group's saliency is the sum of its weights' saliencies.
    `Unstructured("native")` competes over the whole matrix here; a solver resolves it before it asks.
    """
    out, width = saliency.shape
    if sparsity == 0:
        return torch.ones_like(saliency, dtype=torch.bool)
    match granularity:
        case Unstructured("row"):
            return keep_largest(saliency, width - removed_count(sparsity, width))
        case Unstructured():
            flat = saliency.reshape(1, -1)
            return keep_largest(flat, flat.numel() - removed_count(sparsity, flat.numel())).view(out, width)
        case NM(n, m):
            return _keep_of_every(saliency, n, m)
        case Tile(rows, columns):
            grid = saliency.view(out // rows, rows, width // columns, columns).sum(dim=(1, 3))
            tiles = keep_mask(grid, sparsity, Unstructured("matrix"))
            return tiles.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        case Columns(group):
            groups = saliency.sum(0).view(1, width // group, group).sum(2)
            kept = keep_largest(groups, groups.numel() - granularity.removed(sparsity, width))
            return kept.repeat_interleave(group, 1).expand(out, width).clone()


def _keep_of_every(saliency: Float[Tensor, "out in"], n: int, m: int) -> Bool[Tensor, "out in"]:
    """By counting who comes before whom: m^2 comparisons of whole tensors are faster than sorting many tiny rows."""
    members = saliency.unflatten(1, (-1, m)).unbind(2)
    kept = []
    for index, mine in enumerate(members):
        before = torch.zeros_like(mine, dtype=torch.int16)
        for other, value in enumerate(members):
            if other != index:
                before += (value >= mine) if other < index else (value > mine)
        kept.append(before < n)
    return torch.stack(kept, dim=2).view(saliency.shape)


def keep_largest(saliency: Float[Tensor, "rows n"], count: int) -> Bool[Tensor, "rows n"]:
    """True at the `count` largest of every row; of equal values at the border the first positions are kept."""
    size = saliency.shape[1]
    if count >= size:
        return torch.ones_like(saliency, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(saliency, dtype=torch.bool)
    border = saliency.kthvalue(size - count + 1, dim=1, keepdim=True).values
    above = saliency > border
    ties = saliency == border
    short = count - above.sum(1, keepdim=True)
    if bool((ties.sum(1, keepdim=True) == short).all()):
        return above | ties
    return above | (ties & (ties.cumsum(1) <= short))


def exchanged(saliency: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], granularity: Unstructured | NM,
              share: float) -> Bool[Tensor, "out in"]:
    """Another mask, in which at most a `share` of what is kept gave way to more salient weights, and one may anyway: of all pairs of a
    kept weight and another that it competes with, those that differ most in saliency.

    Every group of m, row or matrix within which weights compete keeps as many as before.
    """
    match granularity:
        case NM(_, m):
            width = m
        case Unstructured("row"):
            width = mask.shape[1]
        case _:
            width = mask.numel()
    values, kept = saliency.reshape(-1, width), mask.reshape(-1, width)
    count = max(1, int(share * int(mask.sum())))
    pairs = min(count, width)
    out = values.where(kept, torch.inf).topk(pairs, dim=1, largest=False)
    into = values.where(~kept, -torch.inf).topk(pairs, dim=1)
    gains = (into.values - out.values).flatten()
    best = gains.topk(min(count, len(gains)))
    chosen = best.indices[best.values > 0]
    found = kept.clone()
    found[chosen // pairs, out.indices.flatten()[chosen]] = False
    found[chosen // pairs, into.indices.flatten()[chosen]] = True
    return found.view(mask.shape)
