"""How near is the best support? ALPS and swaps on parts of SmolLM2's matrices so small that all supports can be tried.

A part is some rows of a matrix and some of its inputs, with their part of the Gram, damped as the solvers do it.
Every row is a problem of its own; the best support is the one of least error, with the weights on it fitted exactly.
"""

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from _harness import arguments, model_and_tokenizer, table, write
from _layers import View, layers
from prunus.granularity import NM, Granularity, Unstructured, removed_count
from prunus.problem import LayerProblem
from prunus.solvers.alps import ALPS
from prunus.solvers.swaps import Swaps
from prunus.stats import InputStats
from prunus.surgery.write import read_weight

SOLVERS: dict[str, Any] = {"ALPS": ALPS(damping=0.0), "swaps": Swaps(damping=0.0)}
PATTERNS: dict[str, tuple[float, Granularity]] = {"70 %": (0.7, Unstructured("row")), "2:4": (0.5, NM(2, 4))}
DAMPING, ROWS, TOGETHER = 0.01, 24, 4096


def main() -> None:
    options = arguments(__doc__ or "")
    samples, widths, blocks = (2, (8,), (0,)) if options.tiny else (64, (8, 12, 16, 20, 24, 28), (3, 15, 26))
    model, tokenizer = model_and_tokenizer(options.tiny)
    rows = [row for views in layers(model, tokenizer, samples, 64 if options.tiny else 512, blocks, options.tiny)
            for view in views for row in _rows(view, widths)]
    shown = _table(rows, widths)
    print(shown)
    if not options.tiny:
        write("how_near_is_the_best_support", f"C4 train, {samples} sequences of 512 tokens, dense inputs, float32, all matrices of blocks "
              f"{blocks}, {ROWS} rows of each", rows, {"how_near_is_the_best_support": shown})


@torch.no_grad()
def _rows(view: View, widths: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    weight, gram = read_weight(view.module), view.stats.damped(DAMPING, "median")
    generator = torch.Generator().manual_seed(0)
    for width in widths:
        rows = torch.randperm(len(weight), generator=generator)[:ROWS]
        inputs = torch.randperm(len(gram), generator=generator)[:width].sort().values
        stats = _with(gram[inputs][:, inputs])
        for pattern, (sparsity, granularity) in PATTERNS.items():
            problem = LayerProblem(weight[rows][:, inputs].contiguous(), stats, granularity, sparsity, view.site.name)
            supports = _supports(width, sparsity, granularity)
            best = _least(problem.weight.double(), stats.gram.double(), supports)
            found = {name: problem.error(solver.solve(problem).weight) for name, solver in SOLVERS.items()}
            yield {"site": view.site.name, "inputs": width, "pattern": pattern, "supports": len(supports), "best": best, **found}
        print(view.site.name, width, flush=True)


def _with(gram: Tensor) -> InputStats:
    """Statistics that have this Gram."""
    stats = InputStats(len(gram))
    stats.update(torch.linalg.cholesky(gram.double()).T.float() * math.sqrt(len(gram)))
    return stats


def _supports(width: int, sparsity: float, granularity: Granularity) -> Tensor:
    """Those of one row, as the places that are kept."""
    if isinstance(granularity, NM):
        n, m = granularity.n, granularity.m
        patterns = itertools.product(itertools.combinations(range(m), n), repeat=width // m)
        return torch.tensor([[m * group + place for group, places in enumerate(each) for place in places] for each in patterns])
    kept = width - removed_count(sparsity, width)
    return torch.tensor(list(itertools.combinations(range(width), kept)))


def _least(weight: Tensor, gram: Tensor, supports: Tensor) -> float:
    """The least relative error, every row on the support that suits it: on S, |L^-1 (G w)_S|^2 of its energy is kept, L L^T = G_SS."""
    owed = weight @ gram
    energy = (owed * weight).sum(1)
    kept = torch.zeros_like(energy)
    for some in supports.split(TOGETHER):
        factor = torch.linalg.cholesky(gram[some[:, :, None], some[:, None, :]])
        solved = torch.linalg.solve_triangular(factor, owed[:, some].permute(1, 2, 0), upper=False)
        kept = torch.maximum(kept, solved.square().sum(1).amax(0))
    return float((energy - kept).sum() / energy.sum())


def _table(rows: list[dict[str, Any]], widths: tuple[int, ...]) -> str:
    lines = []
    for pattern, width in itertools.product(PATTERNS, widths):
        found = [row for row in rows if (row["pattern"], row["inputs"]) == (pattern, width)]
        ratios = [[row[name] / row["best"] for row in found] for name in SOLVERS]
        lines.append([pattern, str(width), f"{found[0]['supports']:,}", *(f"{value:.4f}" for each in ratios for value in (
            statistics.fmean(each), max(each)))])
    return table(["pattern", "inputs", "supports", *(f"{name}, {what}" for name in SOLVERS for what in ("mean", "largest"))], lines)


if __name__ == "__main__":
    main()
