"""What do targets bring? Perplexity of SmolLM2 after matrices were fitted to other outputs, on other tokens, in another order.

Uniform sparsity, calibrated on C4. Asymmetry t aims at the dense model's outputs, 1, or at those of the matrix on what the pruned
model gives it, 0, or between; "tokens by gradient" weighs tokens by the squared norm of the loss's gradient at what their block
gives; "block at once" takes the statistics of a block's matrices before any of them is pruned.

Finished rows are kept in build/, so that an interrupted run goes on; --write writes what there is.
"""

import tempfile
from pathlib import Path
from typing import Any

from _harness import ROOT, WRITE, arguments, environment, keep_row, kept_rows, model_and_tokenizer, perplexities, table, write
from prunus import NM, Budget, Calibration, Recipe, Stage, Unstructured, prune
from prunus.calibration.target import Target
from prunus.solvers import Solver
from prunus.solvers.alps import ALPS
from prunus.solvers.sparsegpt import SparseGPT

SOLVERS: dict[str, Solver] = {"SparseGPT": SparseGPT(), "ALPS": ALPS()}
PATTERNS = {"70 %": (Budget(0.3), Unstructured()), "2:4": (Budget(0.5), NM(2, 4))}
TARGETS = {"t = 0": Target(), "t = 0.5": Target(asymmetry=0.5), "t = 1": Target(asymmetry=1.0), "tokens by gradient": Target(fisher=True),
           "t = 0.25": Target(asymmetry=0.25), "block at once": Target(true_sequential=False),
           "t = 0.5, tokens by gradient": Target(asymmetry=0.5, fisher=True)}
KEPT = ROOT / "build" / "what_do_targets_bring"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, samples={"type": int, "default": 32}, write=WRITE)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder if options.tiny else KEPT) / "rows.jsonl"
        rows = kept_rows(file)
        for wanted in _wanted() if not options.write else ():
            if not any(_key(row) == wanted for row in rows):
                rows.append(keep_row(file, _row(options, *wanted)))
    dense, *rows = sorted(rows, key=lambda row: [["", *SOLVERS].index(row["solver"]), row["pattern"], row["target"]])
    shown = _shown(dense["perplexity"], rows)
    print(shown)
    if not options.tiny:
        write("what_do_targets_bring", "; ".join(dense["protocols"]), [dense, *rows], {"what_do_targets_bring": shown},
              calibration=f"c4 train, {options.samples} sequences of 512 tokens, seed 0", dtype=options.dtype)


def _wanted() -> list[tuple[str, str, str]]:
    """Solver, pattern and target, those first that most depends on."""
    return [("", "", ""), *((solver, pattern, target) for solver in SOLVERS for target in TARGETS for pattern in PATTERNS)]


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["solver"], row["pattern"], row["target"]


def _row(options: Any, solver: str, pattern: str, target: str) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    row: dict[str, Any] = {"solver": solver, "pattern": pattern, "target": target, "commit": environment()["commit"]}
    if solver:
        text = (Calibration("builtin", samples=4, length=64) if options.tiny
                else Calibration("c4", samples=options.samples, length=512))
        budget, granularity = PATTERNS[pattern]
        stage = Stage(budget=budget, granularity=granularity, solver=SOLVERS[solver], target=TARGETS[target])
        report = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report
        row |= {"zeros": report.sparsity, "seconds": round(report.seconds["pruning"], 1)}
    row |= perplexities(model, tokenizer, options.tiny)
    print(row, flush=True)
    return row


def _shown(dense: list[float], rows: list[dict[str, Any]]) -> str:
    """Perplexities, and the gap to the dense model as a share of the gap with the default target."""
    texts = ["WikiText-2", "C4"][: len(dense)]
    plain = {(row["solver"], row["pattern"]): row["perplexity"] for row in rows if row["target"] == "t = 0"}
    lines = []
    for row in rows:
        gaps = [(value - base) / (first - base) for value, base, first in
                zip(row["perplexity"], dense, plain[row["solver"], row["pattern"]], strict=True)]
        lines.append([row["solver"], row["pattern"], row["target"], *(f"{value:.4g}" for value in row["perplexity"]),
                      *(f"{gap:.2f}" for gap in gaps)])
    return table(["solver", "pattern", "target", *texts, *(f"gap, {text}" for text in texts)], lines)


if __name__ == "__main__":
    main()
