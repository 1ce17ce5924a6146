"""How fast is ALPS? Solving all matrices of SmolLM2 at 70 %, beside the algorithm arranged as its authors published it."""

import statistics
import time
from typing import Any

import torch

from _harness import arguments, model_and_tokenizer, table, write
from _layers import layers
from _published_alps import alps_published
from prunus.granularity import Unstructured
from prunus.problem import LayerProblem
from prunus.solvers.alps import ALPS
from prunus.surgery.write import read_weight

SPARSITY = 0.7


def main() -> None:
    options = arguments(__doc__ or "", samples={"type": int, "default": 16})
    rows = _rows(options.tiny, options.samples)
    ours, theirs = (sum(row[name] for row in rows) for name in ("seconds", "published_seconds"))
    ratios = [row["error"] / row["published_error"] for row in rows]
    shown = table(["", "seconds", "relative output error, mean"], [
        ["as published", f"{theirs:.1f}", f"{statistics.fmean(row['published_error'] for row in rows):.5f}"],
        ["Prunus", f"{ours:.1f}", f"{statistics.fmean(row['error'] for row in rows):.5f}"],
        ["ratio", f"{ours / theirs:.3f}", f"{statistics.fmean(ratios):.3f} (largest {max(ratios):.3f})"],
    ])
    print(shown)
    if not options.tiny:
        write("how_fast_is_alps", f"70 %, matrix scope, C4, {options.samples} sequences of 512 tokens, dense inputs, float32",
              rows, {"how_fast_is_alps": shown})


@torch.no_grad()
def _rows(tiny: bool, samples: int) -> list[dict[str, Any]]:
    model, tokenizer = model_and_tokenizer(tiny)
    rows = []
    for views in layers(model, tokenizer, 2 if tiny else samples, 64 if tiny else 512, None, tiny):
        for view in views:
            problem = LayerProblem(read_weight(view.module), view.stats, Unstructured("matrix"), SPARSITY, view.site.name)
            gram = view.stats.gram
            start = time.perf_counter()
            solution = ALPS().solve(problem)  # what sites share is made by the first of them, inside its time
            middle = time.perf_counter()
            published = alps_published(problem.weight, gram, SPARSITY, problem.granularity)
            end = time.perf_counter()
            rows.append({"site": view.site.name, "seconds": middle - start, "published_seconds": end - middle,
                         "error": problem.error(solution.weight), "published_error": problem.error(published)})
        print(views[0].site.block, flush=True)
    return rows


if __name__ == "__main__":
    main()
