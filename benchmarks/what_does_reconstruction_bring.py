"""What does reconstruction bring? Perplexity of SmolLM2 after ALPS, with the kept weights of every block trained and not.

Both are calibrated on the same text, and the same number of weights is zero in every matrix. Processor seconds, as others may
compute on the machine beside.

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
from prunus.granularity import NM, Granularity, Unstructured
from prunus.recovery import Recovery
from prunus.recovery.reconstruct import Reconstruct
from prunus.solvers.alps import ALPS

PATTERNS: dict[str, tuple[float, Granularity]] = {
    "50 %": (0.5, Unstructured()), "60 %": (0.6, Unstructured()), "70 %": (0.7, Unstructured()), "80 %": (0.8, Unstructured()),
    "2:4": (0.5, NM(2, 4))}
WAYS: dict[str, Recovery | None] = {"ALPS": None, "ALPS, reconstructed": Reconstruct()}
QUESTION = "what_does_reconstruction_bring"
KEPT = ROOT / "build" / QUESTION


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, go_on=GO_ON, write=WRITE,
                        only={"nargs": "*", "default": [], "help": "patterns"})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) if options.tiny else KEPT
        rows = kept_rows(home / "rows.jsonl", QUESTION if options.go_on else "")
        patterns = ["2:4"] if options.tiny else [name for name in PATTERNS if not options.only or name in options.only]
        for wanted in (("", "dense"), *((pattern, way) for pattern in patterns for way in WAYS)):
            if not options.write and not any((row["pattern"], row["way"]) == wanted for row in rows):
                rows.append(keep_row(home / "rows.jsonl", _row(options, *wanted)))
                print(rows[-1], flush=True)
    if options.only and not options.write:
        return
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        write(QUESTION, "; ".join(rows[0]["protocols"]), rows, {QUESTION: shown},
              calibration="c4 train, 64 sequences of 512 tokens, seed 0", dtype=options.dtype)


def _row(options: Any, pattern: str, way: str) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    row: dict[str, Any] = {"pattern": pattern, "way": way, "commit": environment()["commit"]}
    if pattern:
        sparsity, granularity = PATTERNS[pattern]
        text = Calibration("builtin", samples=8, length=64) if options.tiny else Calibration("c4", samples=64, length=512)
        stage = Stage(budget=Budget(1 - sparsity), granularity=granularity, solver=ALPS(), recovery=WAYS[way])
        peak_memory()
        with Timer() as timer:
            report = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report
        row |= {"zeros": report.sparsity, "processor": round(timer.cpu, 1), "wall": round(timer.wall, 1), "memory": peak_memory(),
                "seconds": {key: round(value, 1) for key, value in report.seconds.items()}, "notes": report.notes}
    return row | perplexities(model, tokenizer, options.tiny)


def _table(rows: list[dict[str, Any]]) -> str:
    """Perplexities, and the gap to the dense model as a share of that of ALPS alone."""
    known = {(row["pattern"], row["way"]): row for row in rows}
    dense = known["", "dense"]["perplexity"]
    texts = ["WikiText-2", "C4"][: len(dense)]
    cells = [["", "dense", *(f"{value:.2f}" for value in dense), *("0" for _ in dense), "", ""]]
    for pattern in PATTERNS:
        for way in WAYS:
            if row := known.get((pattern, way)):
                alone = known[pattern, "ALPS"]["perplexity"]
                trios = zip(row["perplexity"], alone, dense, strict=True)
                gaps = [f"{(found - base) / (other - base):.2f}" for found, other, base in trios]
                cells.append([pattern, way, *(f"{value:.2f}" for value in row["perplexity"]), *gaps, f"{row['processor']:.0f}",
                              f"{row['memory'] / 2**20:.0f} MiB"])
    return table(["removed", "", *texts, *(f"gap, {text}" for text in texts), "processor seconds", "peak memory"], cells)


if __name__ == "__main__":
    main()
