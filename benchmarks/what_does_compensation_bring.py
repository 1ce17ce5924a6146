"""What does compensation bring? Perplexity of SmolLM2 after channels have gone, with the kept ones refitted and not.

Both remove channels by the same criterion, from the statistics of the model as it is pruned so far; only the values of the
kept columns differ. Of attention, whole key/value groups go with their queries: SmolLM2 has three in a block.

Finished rows are kept in build/; --only measures some criteria and writes no result, so that two processes can share the work.
"""

import tempfile
from pathlib import Path
from typing import Any

from _harness import ROOT, arguments, environment, keep_row, kept_rows, model_and_tokenizer, perplexities, table, write
from prunus import Budget, Calibration, Recipe, Stage, prune
from prunus.criteria import Criterion
from prunus.criteria.flap import FLAP
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.obs import OBS
from prunus.criteria.wanda import Wanda
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit

SPARSITIES = (0.2, 0.3)
CRITERIA: dict[str, Criterion] = {"magnitude": Magnitude(), "FLAP": FLAP(), "Wanda": Wanda(), "OBS": OBS()}
SITES = {"attention and MLP": (), "MLP": ("*attn*",)}
KEPT = ROOT / "build" / "what_does_compensation_bring"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, only={"nargs": "*", "default": [], "help": "names of criteria"})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder if options.tiny else KEPT) / "rows.jsonl"
        rows = kept_rows(file)
        for wanted in _wanted(options):
            if not any(tuple(row[key] for key in ("sites", "criterion", "sparsity", "refitted")) == wanted for row in rows):
                rows.append(keep_row(file, _row(options, *wanted)))
    if options.only:
        return
    order = ["", *CRITERIA]
    dense, *rows = sorted(rows, key=lambda row: (row["sites"], row["sparsity"], order.index(row["criterion"]), row["refitted"]))
    texts = ["WikiText-2", "C4"][: len(dense["perplexity"])]
    shown = table(["channels of", "removed", "chosen by", *(f"{text}, {how}" for text in texts for how in ("as they were", "refitted")),
                   *(f"gap, {text}" for text in texts)],
                  [_cells(dense["perplexity"], *pair) for pair in zip(rows[::2], rows[1::2], strict=True)])
    print(shown)
    if not options.tiny:
        write("what_does_compensation_bring", "; ".join(dense["protocols"]), [dense, *rows], {"what_does_compensation_bring": shown},
              calibration="c4 train, 64 sequences of 512 tokens, seed 0", dtype=options.dtype)


def _wanted(options: Any) -> list[tuple[str, str, float, bool]]:
    """Sites, criterion, sparsity, and whether what stays is refitted."""
    criteria = [name for name in CRITERIA if not options.only or name in options.only]
    sites = list(SITES)[:1] if options.tiny else SITES
    return [("", "", 0.0, False), *((where, name, sparsity, refitted) for where in sites for name in criteria for sparsity in SPARSITIES
                                    for refitted in (False, True) if where == "attention and MLP" or name in ("Wanda", "OBS"))]


def _row(options: Any, sites: str = "", criterion: str = "", sparsity: float = 0.0,
         refitted: bool = False) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    row: dict[str, Any] = {"sites": sites, "criterion": criterion, "sparsity": sparsity, "refitted": refitted,
                           "commit": environment()["commit"]}
    if sites:
        text = Calibration("builtin", samples=4, length=64) if options.tiny else Calibration("c4", samples=64, length=512)
        solver = (Refit if refitted else Mask)(CRITERIA[criterion])
        stage = Stage(("channel",), Budget(1 - sparsity), solver=solver, skip=SITES[sites])
        report = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report
        row |= {"reached": min(record.reached for record in report.sites), "zeros": report.sparsity,
                "seconds": {key: round(value, 1) for key, value in report.seconds.items()}}
    row |= perplexities(model, tokenizer, options.tiny)
    print(row, flush=True)
    return row


def _cells(dense: list[float], plain: dict[str, Any], refitted: dict[str, Any]) -> list[str]:
    """Perplexities, and the gap to the dense model that is left, as a share of the gap without compensation."""
    pairs = list(zip(plain["perplexity"], refitted["perplexity"], strict=True))
    gaps = [f"{(after - base) / (before - base):.2f}" for (before, after), base in zip(pairs, dense, strict=True)]
    return [plain["sites"], f"{plain['sparsity']:.0%}", plain["criterion"], *(f"{value:.4g}" for pair in pairs for value in pair), *gaps]


if __name__ == "__main__":
    main()
