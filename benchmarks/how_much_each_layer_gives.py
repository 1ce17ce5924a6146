"""How much should each layer give? Perplexity of SmolLM2 at 70 % with SparseGPT, by allocator, on two texts never pruned on.

Every finished row is kept in build/, so that an interrupted run goes on where it stopped.
"""

import json
from typing import Any

from _harness import ROOT, arguments, environment, model_and_tokenizer, table, write
from prunus import Budget, Calibration, Recipe, Stage, prune
from prunus.allocation import Allocator
from prunus.allocation.dlp import DLP
from prunus.allocation.erk import ERK
from prunus.allocation.owl import OWL
from prunus.allocation.reconstruction import Reconstruction
from prunus.allocation.uniform import Uniform
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity
from prunus.solvers.sparsegpt import SparseGPT

ALLOCATORS: dict[str, Allocator] = {
    "uniform": Uniform(), "ERK": ERK(), "OWL": OWL(), "OWL, per matrix": OWL(per="matrix"), "DLP": DLP(),
    "reconstruction": Reconstruction(), "reconstruction, per block": Reconstruction(per="block"),
}
KEPT = ROOT / "build" / "how_much_each_layer_gives.jsonl"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"})
    metrics = [Perplexity("builtin", tokens=640, length=64)] if options.tiny else [
        Perplexity("wikitext2", length=512, tokens=20_480), Perplexity("c4", "validation", length=512, tokens=20_480)]
    rows = [] if options.tiny or not KEPT.exists() else [json.loads(line) for line in KEPT.read_text().splitlines()]
    for name in ["dense", *(list(ALLOCATORS)[:3] if options.tiny else ALLOCATORS)]:
        if name not in {row["allocator"] for row in rows}:
            rows.append(_row(options, name, metrics))
            print(rows[-1], flush=True)
            if not options.tiny:
                KEPT.parent.mkdir(exist_ok=True)
                with KEPT.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        write("how_much_each_layer_gives", "; ".join(rows[0]["protocols"]), rows, {"how_much_each_layer_gives": shown},
              calibration="c4 train, 64 sequences of 512 tokens, seed 0", dtype=options.dtype)


def _row(options: Any, name: str, metrics: list[Perplexity]) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    row: dict[str, Any] = {"allocator": name, "commit": environment()["commit"]}
    if name != "dense":
        text = Calibration("builtin", samples=4, length=64) if options.tiny else Calibration("c4", samples=64, length=512)
        stage = Stage(budget=Budget(0.3), solver=SparseGPT(), allocation=ALLOCATORS[name])
        report = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report
        shares = report.allocation[0].values()
        row |= {"sparsity": report.sparsity, "least": min(shares), "most": max(shares),
                "seconds": {key: round(value, 1) for key, value in report.seconds.items()}}
    measured = [metric.measure(model, Context(tokenizer)) for metric in metrics]
    return row | {"perplexity": [value.value for value in measured], "protocols": [value.protocol for value in measured]}


def _table(rows: list[dict[str, Any]]) -> str:
    """Perplexities, and the gap to the dense model as a share of uniform's."""
    known = {row["allocator"]: row["perplexity"] for row in rows}
    texts = ["WikiText-2", "C4"][: len(known["dense"])]
    return table(
        ["allocator", "least", "most", *texts, *(f"gap, {text}" for text in texts)],
        [[row["allocator"], f"{row.get('least', 0):.3f}", f"{row.get('most', 0):.3f}", *(f"{value:.1f}" for value in row["perplexity"]),
          *(f"{(value - dense) / (uniform - dense):.2f}" for value, dense, uniform
            in zip(row["perplexity"], known["dense"], known["uniform"], strict=True))] for row in rows])


if __name__ == "__main__":
    main()
