"""Which solver reconstructs best? Relative output error and seconds on real layers of SmolLM2, at equal sparsity.

The error is that on the calibration text, with the Gram that was not damped. It depends on how much text there is:
with little, solvers that optimise harder fit it more closely, so two amounts are shown.

Finished rows are kept in build/, so that an interrupted benchmark goes on where it stopped.
"""

import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from _harness import ROOT, arguments, keep_row, kept_rows, model_and_tokenizer, table, write
from _layers import BLOCKS, View, layers
from prunus.criteria.magnitude import Magnitude
from prunus.granularity import NM, Granularity, Unstructured
from prunus.problem import LayerProblem
from prunus.solvers.alps import ALPS
from prunus.solvers.ladmm import LADMM
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT
from prunus.solvers.swaps import Swaps
from prunus.surgery.write import read_weight

SOLVERS: dict[str, Any] = {"magnitude": Mask(Magnitude()), "Wanda": Mask(), "SparseGPT": SparseGPT(), "L-ADMM": LADMM(),
                           "ALPS": ALPS(), "swaps": Swaps()}
PATTERNS: dict[str, float] = {"50 %": 0.5, "60 %": 0.6, "70 %": 0.7, "80 %": 0.8, "90 %": 0.9, "2:4": 0.5}
SAMPLES = (8, 64)
KEPT = ROOT / "build" / "which_solver_reconstructs_best"


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        file = (Path(folder) if options.tiny else KEPT) / "rows.jsonl"
        for samples in (2,) if options.tiny else SAMPLES:
            _measure(options.tiny, samples, file)
        rows = kept_rows(file)
    shown = "\n\n".join(f"{samples} sequences of 512 tokens:\n\n{_table(rows, samples)}" for samples in
                        sorted({row["samples"] for row in rows}))
    print(shown)
    if not options.tiny:
        write("which_solver_reconstructs_best", f"C4 train, 512 tokens a sequence, dense inputs, float32, blocks {BLOCKS}", rows,
              {"which_solver_reconstructs_best": shown})


@torch.no_grad()
def _measure(tiny: bool, samples: int, file: Path) -> None:
    model, tokenizer = model_and_tokenizer(tiny)
    known = {(row["site"], row["samples"], row["pattern"], row["solver"]) for row in kept_rows(file)}
    for views in layers(model, tokenizer, samples, 64 if tiny else 512, BLOCKS, tiny):
        for pattern, name in itertools.product(PATTERNS, SOLVERS):
            for view in views:
                view.stats.forget()  # so that every run pays for its own factorisations, shared by the sites of the run
            for view in views:
                if (view.site.name, samples, pattern, name) not in known:
                    keep_row(file, _row(view, samples, pattern, name))
        print(views[0].site.block, flush=True)


def _row(view: View, samples: int, pattern: str, name: str) -> dict[str, Any]:
    solver = SOLVERS[name]
    problem = LayerProblem(read_weight(view.module), view.stats, _shape(pattern, solver), PATTERNS[pattern], view.site.name)
    start = time.perf_counter()
    solution = solver.solve(problem)
    seconds = time.perf_counter() - start
    error = problem.error(solution.weight)
    assert error is not None
    return {"site": view.site.name, "samples": samples, "pattern": pattern, "solver": name, "error": float(f"{error:.6g}"),
            "seconds": round(seconds, 4)}


def _shape(pattern: str, solver: Any) -> Granularity:
    """Each solver in the scope of its paper."""
    return NM(2, 4) if pattern == "2:4" else Unstructured(solver.scope)


def _table(rows: list[dict[str, Any]], samples: int) -> str:
    lines = []
    for pattern in PATTERNS:
        found = {name: {row["site"]: row for row in rows if (row["samples"], row["pattern"], row["solver"]) ==
                        (samples, pattern, name)} for name in SOLVERS}
        pairs = [[found[one][site]["error"] / row["error"] for site, row in found[other].items()]
                 for one, other in (("ALPS", "SparseGPT"), ("swaps", "ALPS"))]
        means = [f"{math.exp(statistics.fmean(math.log(row['error']) for row in found[name].values())):.4f}, "
                 f"{sum(row['seconds'] for row in found[name].values()):.1f} s" for name in SOLVERS]
        lines.append([pattern, *means, *(f"{value:.3f}" for ratios in pairs for value in (statistics.fmean(ratios), max(ratios)))])
    return table(["sparsity", *SOLVERS, "ALPS / SparseGPT, mean", "largest", "swaps / ALPS, mean", "largest"], lines)


if __name__ == "__main__":
    main()
