"""Sparsity as it is, counted in the weights of a model that was pruned, whatever its recipe says."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .anatomy import describe
from .errors import ComparisonError
from .loading import load
from .sites import Anatomy

__all__ = ["Counted", "counted", "of_folder", "sparsity_of"]


@dataclass(frozen=True)
class Counted:
    """What is left of one matrix of the blocks of the dense model."""

    name: str  # of the matrix; or of all that were left out with their blocks
    weights: int  # in the dense model
    zeros: int  # of the weights that are there
    gone: int  # weights that are not there any more

    @property
    def sparsity(self) -> float:
        """The share that is zero or gone."""
        return (self.zeros + self.gone) / self.weights


def counted(model: Any, anatomy: Anatomy, dense: Anatomy) -> tuple[Counted, ...]:
    """Every matrix of the dense model's blocks, in its order; zeros that were there before count.

    Where whole blocks are gone, the others have moved up, and which ones they were does not show in the weights: a matrix is then
    counted against one of its kind, and what is left over is one line. Raises ComparisonError where the model cannot have been pruned
    from the dense one.
    """
    left = {site.name: model.get_submodule(site.name).weight for site in anatomy.sites("linear")}
    moved = len(anatomy.blocks) != len(dense.blocks)
    sizes = {_kind(site.name): site.size for site in dense.sites("linear")}
    for name, weight in left.items():
        if weight.numel() > sizes.get(_kind(name), 0) or len(anatomy.blocks) > len(dense.blocks):
            raise ComparisonError(f"{name}: {weight.numel():,} weights, where the dense model has {sizes.get(_kind(name), 0):,}, in "
                                  f"{len(anatomy.blocks)} blocks, where it has {len(dense.blocks)}. Name the model that this one was "
                                  "pruned from.")
    return tuple(_by_kind(left, dense) if moved else _by_name(left, dense))


def of_folder(folder: str | Path, dense: Anatomy) -> tuple[Counted, ...]:
    """The same of a folder that was saved. Raises LoadError."""
    model = load(folder).model
    return counted(model, describe(model), dense)


def sparsity_of(found: Sequence[Counted]) -> float:
    """Of all matrices together."""
    return sum(matrix.zeros + matrix.gone for matrix in found) / sum(matrix.weights for matrix in found)


def _by_name(left: dict[str, Any], dense: Anatomy) -> Iterator[Counted]:
    for site in dense.sites("linear"):
        weight = left.get(site.name)
        yield Counted(site.name, site.size, 0, site.size) if weight is None else _matrix(site.name, site.size, weight)


def _by_kind(left: dict[str, Any], dense: Anatomy) -> Iterator[Counted]:
    sizes = {_kind(site.name): site.size for site in dense.sites("linear")}
    rest = sum(site.size for site in dense.sites("linear"))
    for name, weight in left.items():
        rest -= sizes[_kind(name)]
        yield _matrix(name, sizes[_kind(name)], weight)
    yield Counted("matrices of branches and blocks that were left out", rest, 0, rest)


def _matrix(name: str, size: int, weight: Any) -> Counted:
    return Counted(name, size, weight.numel() - int(weight.count_nonzero()), size - weight.numel())


def _kind(name: str) -> str:
    """The path of a matrix without the number of its block."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)
