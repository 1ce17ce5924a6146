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
    most = _largest(dense) if moved else {site.name: site.size for site in dense.sites("linear")}
    for name, weight in left.items():
        room = most.get(_kind(name) if moved else name, 0)
        if weight.numel() > room or len(anatomy.blocks) > len(dense.blocks):
            raise ComparisonError(f"{name}: {weight.numel():,} weights, where the dense model has {room:,}, in {len(anatomy.blocks)} "
                                  f"blocks, where it has {len(dense.blocks)}. Name the model that this one was pruned from.")
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
    """Where matrices of one kind differ in the dense model, which one was larger is not known: what is missing is in the last line."""
    sizes = _largest(dense)
    equal = all(site.size == sizes[_kind(site.name)] for site in dense.sites("linear"))
    rest = sum(site.size for site in dense.sites("linear"))
    for name, weight in left.items():
        size = sizes[_kind(name)] if equal else weight.numel()
        rest -= size
        yield _matrix(name, size, weight)
    yield Counted("matrices of branches and blocks that were left out", rest, 0, rest)


def _largest(dense: Anatomy) -> dict[str, int]:
    """The weights of the largest matrix of every kind."""
    sizes: dict[str, int] = {}
    for site in dense.sites("linear"):
        sizes[_kind(site.name)] = max(site.size, sizes.get(_kind(site.name), 0))
    return sizes


def _matrix(name: str, size: int, weight: Any) -> Counted:
    return Counted(name, size, weight.numel() - int(weight.count_nonzero()), size - weight.numel())


def _kind(name: str) -> str:
    """The path of a matrix without the number of its block."""
    return re.sub(r"\.\d+\.", ".*.", name, count=1)
