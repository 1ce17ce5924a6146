"""What does compensation bring? Perplexity of SmolLM2 after MLP channels have gone, with the kept ones refitted and not.

Both remove the same channels by the same criterion from the same dense inputs' statistics of the model pruned so far; only the
values of the kept columns differ.
"""

from typing import Any

from _harness import arguments, environment, model_and_tokenizer, table, write
from prunus import Budget, Calibration, Recipe, Stage, prune
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity
from prunus.solvers import Solver
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit

SPARSITIES = (0.2, 0.3)
SOLVERS: dict[str, Solver] = {"as they were": Mask(), "refitted": Refit()}


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"})
    metrics = [Perplexity("builtin", tokens=640, length=64)] if options.tiny else [
        Perplexity("wikitext2", length=512, tokens=20_480), Perplexity("c4", "validation", length=512, tokens=20_480)]
    rows = [_row(options, metrics, None, 0.0, "")]
    rows += [_row(options, metrics, solver, sparsity, name) for sparsity in SPARSITIES for name, solver in SOLVERS.items()]
    texts = ["WikiText-2", "C4"][: len(metrics)]
    shown = table(["channels removed", "kept columns", *texts, *(f"gap, {text}" for text in texts)],
                  [_cells(rows, row) for row in rows])
    print(shown)
    if not options.tiny:
        write("what_does_compensation_bring", "; ".join(rows[0]["protocols"]), rows, {"what_does_compensation_bring": shown},
              calibration="c4 train, 64 sequences of 512 tokens, seed 0", dtype=options.dtype)


def _row(options: Any, metrics: list[Perplexity], solver: Solver | None, sparsity: float, name: str) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    row: dict[str, Any] = {"solver": name, "sparsity": sparsity, "commit": environment()["commit"]}
    if solver is not None:
        text = Calibration("builtin", samples=4, length=64) if options.tiny else Calibration("c4", samples=64, length=512)
        stage = Stage(("channel",), Budget(1 - sparsity), solver=solver, skip=("*attn*",))
        report = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report
        row |= {"reached": min(record.reached for record in report.sites), "zeros": report.sparsity,
                "seconds": {key: round(value, 1) for key, value in report.seconds.items()}}
    measured = [metric.measure(model, Context(tokenizer)) for metric in metrics]
    row |= {"perplexity": [value.value for value in measured], "protocols": [value.protocol for value in measured]}
    print(row, flush=True)
    return row


def _cells(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[str]:
    """Perplexities, and the gap to the dense model as a share of the gap without compensation."""
    dense = rows[0]["perplexity"]
    plain = next((other["perplexity"] for other in rows
                  if other["solver"] == "as they were" and other["sparsity"] == row["sparsity"]), None)
    gaps = ["" if plain is None else f"{(value - base) / (without - base):.2f}"
            for value, base, without in zip(row["perplexity"], dense, plain or dense, strict=True)]
    name = f"{row['sparsity']:.0%}" if row["solver"] else "none (dense)"
    return [name, row["solver"], *(f"{value:.2f}" for value in row["perplexity"]), *gaps]


if __name__ == "__main__":
    main()
