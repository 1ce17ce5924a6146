"""What does SparseLLM bring? Perplexity of SmolLM2 after solvers alone, and with their MLPs solved as a whole.

All are calibrated on the same text, and the same number of weights is zero in every matrix. Processor seconds, as others may compute
on the machine beside.

Finished rows are kept in build/; --only measures some patterns and writes no result, so that two processes can share the work.
"""

import tempfile
from pathlib import Path
from typing import Any

from _harness import (
    GO_ON,
    ROOT,
    WRITE,
    Timer,
    arguments,
    environment,
    keep_row,
    kept_rows,
    model_and_tokenizer,
    peak_memory,
    perplexities,
    table,
    write,
)
from prunus import Budget, Calibration, Recipe, Stage, prune
from prunus.criteria.wanda import Wanda
from prunus.granularity import NM, Granularity, Unstructured
from prunus.solvers import Solver
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT
from prunus.solvers.sparsellm import SparseLLM

PATTERNS: dict[str, tuple[float, Granularity]] = {"70 %": (0.7, Unstructured()), "80 %": (0.8, Unstructured()), "2:4": (0.5, NM(2, 4))}
INSIDE: dict[str, Solver] = {"Wanda": Mask(Wanda()), "SparseGPT": SparseGPT(), "ALPS": ALPS()}
WAYS = ("alone", "SparseLLM")
QUESTION = "what_does_sparsellm_bring"
KEPT = ROOT / "build" / QUESTION


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, samples={"type": int, "default": 64}, go_on=GO_ON, write=WRITE,
                        only={"nargs": "*", "default": [], "help": "patterns"})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder if options.tiny else KEPT) / "rows.jsonl"
        rows = kept_rows(file, QUESTION if options.go_on else "")
        patterns = ["2:4"] if options.tiny else [name for name in PATTERNS if not options.only or name in options.only]
        asked = [(pattern, inside, way) for pattern in patterns for inside in INSIDE for way in WAYS]
        for wanted in (("", "", "dense"), *asked):
            if not options.write and not any((row["pattern"], row["inside"], row["way"]) == wanted for row in rows):
                rows.append(keep_row(file, _row(options, *wanted)))
                print(rows[-1], flush=True)
    if options.only and not options.write:
        return
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        write(QUESTION, "; ".join(rows[0]["protocols"]), rows, {QUESTION: shown},
              calibration=f"c4 train, {options.samples} sequences of 512 tokens, seed 0", dtype=options.dtype)


def _row(options: Any, pattern: str, inside: str, way: str) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    row: dict[str, Any] = {"pattern": pattern, "inside": inside, "way": way, "commit": environment()["commit"]}
    if pattern:
        sparsity, granularity = PATTERNS[pattern]
        text = Calibration("builtin", samples=8, length=64) if options.tiny else Calibration("c4", samples=options.samples, length=512)
        solver = INSIDE[inside] if way == "alone" else SparseLLM(INSIDE[inside])
        stage = Stage(budget=Budget(1 - sparsity), granularity=granularity, solver=solver)
        peak_memory()
        with Timer() as timer:
            report = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report
        row |= {"zeros": report.sparsity, "processor": round(timer.cpu, 1), "memory": peak_memory()}
    return row | perplexities(model, tokenizer, options.tiny)


def _table(rows: list[dict[str, Any]]) -> str:
    """Perplexities, and the gap to the dense model as a share of that of the solver inside alone."""
    known = {(row["pattern"], row["inside"], row["way"]): row for row in rows}
    dense = known["", "", "dense"]["perplexity"]
    texts = ["WikiText-2", "C4"][: len(dense)]
    cells = [["", "dense", *(f"{value:.2f}" for value in dense), *("0" for _ in dense), "", ""]]
    for (pattern, inside, way), row in known.items():
        if pattern:
            alone = known[pattern, inside, "alone"]["perplexity"]
            trios = zip(row["perplexity"], alone, dense, strict=True)
            gaps = [f"{(found - base) / (other - base):.2f}" for found, other, base in trios]
            cells.append([pattern, inside if way == "alone" else f"{inside} in SparseLLM", *(f"{value:.2f}" for value in row["perplexity"]),
                          *gaps, f"{row['processor']:.0f}", f"{row['memory'] / 2**20:.0f} MiB"])
    return table(["removed", "", *texts, *(f"gap, {text}" for text in texts), "processor seconds", "peak memory"], cells)


if __name__ == "__main__":
    main()
