"""Matrices to prune, drawn by a seed, and the laws that tests apply to more than one plug-in."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prunus.granularity import NM, Columns, Granularity, Tile, Unstructured
from prunus.lookup import find, names
from prunus.problem import LayerProblem, LayerSolution
from prunus.stats import InputStats

SHAPES: tuple[Granularity, ...] = (
    Unstructured("row"), Unstructured("matrix"), NM(2, 4), NM(1, 4), NM(4, 6), NM(6, 8), Tile(2, 4), Columns(1), Columns(4),
    Columns(1, 8),
)


def sparsity_of(granularity: Granularity, asked: float = 0.6) -> float:
    """What may be asked of a granularity: n:m fixes it."""
    return 1 - granularity.n / granularity.m if isinstance(granularity, NM) else asked


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(seed: int, width: int = 24, tokens: int = 200) -> Tensor:
    """Correlated activations of unequal size, as in a language model."""
    draw = generator(1000 + seed)
    mixing = torch.randn(width, width, generator=draw) / width**0.5 + torch.eye(width)
    return torch.randn(tokens, width, generator=draw) @ mixing * (0.2 + torch.rand(width, generator=draw))


def stats_of(x: Tensor, needs: Any = "gram", name: str = "inputs") -> InputStats:
    stats = InputStats(x.shape[1], needs, name=name)
    stats.update(x)
    return stats


def problem(seed: int = 0, rows: int = 12, width: int = 24, tokens: int = 200, granularity: Granularity = Unstructured("row"),
            sparsity: float | None = None, x: Tensor | None = None, weight: Tensor | None = None) -> LayerProblem:
    """A problem drawn by a seed; any part may be given."""
    drawn = torch.randn(rows, width, generator=generator(seed)) if weight is None else weight
    moments = stats_of(inputs(seed, drawn.shape[1], tokens) if x is None else x, name="blocks.3.down")
    share = sparsity_of(granularity) if sparsity is None else sparsity
    return LayerProblem(drawn, moments, granularity, share, "blocks.3.down")


def solvers() -> Iterator[tuple[str, Any]]:
    """Every solver with its defaults."""
    for name in names("solvers"):
        yield name, find("solvers", name)()


def solver_shapes() -> list[Any]:
    """Every solver with every granularity that it supports, for parametrisation."""
    import pytest

    return [pytest.param(solver, shape, id=f"{name}-{shape}")
            for name, solver in solvers() for shape in (*SHAPES, Columns(4, nearest=True)) if type(shape) in solver.supports]


def assert_same(one: LayerSolution, other: LayerSolution, tolerance: float = 0.0) -> None:
    """The same mask, and weights equal to `tolerance` times the largest of them."""
    assert torch.equal(one.mask, other.mask), f"{int((one.mask != other.mask).sum())} of {one.mask.numel()} places differ"
    size = float(one.weight.abs().max())
    assert float((one.weight - other.weight).abs().max()) <= tolerance * size
