"""How much quality is left? WikiText-2 perplexity of SmolLM2 after one-shot pruning with C4 text, by solver and sparsity.

Every finished cell is kept in build/, so that an interrupted run goes on where it stopped. `--seed N` measures one
seed's cells only, so that several processes can share the work; the run without it writes the result. `--write` writes
what has been measured so far, and says which cells are missing.
"""

import statistics
from typing import Any

from _harness import ROOT, WRITE, arguments, environment, keep_row, kept_rows, model_and_tokenizer, table, write
from prunus import NM, Budget, Calibration, Recipe, Stage, Unstructured, prune
from prunus.criteria.magnitude import Magnitude
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT

SOLVERS = {"magnitude": Mask(Magnitude()), "Wanda": Mask(), "SparseGPT": SparseGPT(), "ALPS": ALPS()}
PATTERNS = {"50 %": 0.5, "60 %": 0.4, "70 %": 0.3, "80 %": 0.2, "2:4": 0.5}  # limit of the budget
SEEDS = (0, 1, 2)
KEPT = ROOT / "build" / "how_much_quality_is_left.jsonl"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, seed={"type": int},
                        write=WRITE)
    metric = Perplexity("builtin", tokens=640, length=64) if options.tiny else Perplexity("wikitext2", length=512, tokens=20_480)
    cells = [] if options.tiny else _kept(options.dtype)
    done = {(cell["solver"], cell["pattern"], cell["seed"]) for cell in cells}
    if ("dense", "", 0) not in done and options.seed in (None, 0):
        cells.append(_keep(_dense(options, metric), options))
    for seed, pattern, solver in _order(options.tiny):
        if (solver, pattern, seed) not in done and options.seed in (None, seed) and not options.write:
            cells.append(_keep(_cell(options, metric, solver, pattern, seed), options))
    shown = _table(cells)
    print(shown)
    if not options.tiny and options.seed is None:
        found = {(cell["solver"], cell["pattern"], cell["seed"]) for cell in cells}
        missing = [f"{solver} {pattern} seed {seed}" for seed, pattern, solver in _order(False)
                   if (solver, pattern, seed) not in found]
        write("how_much_quality_is_left", cells[0]["protocol"], cells, {"how_much_quality_is_left": shown},
              calibration="c4 train, 64 sequences of 512 tokens", dtype=options.dtype, missing=missing)


def _order(tiny: bool) -> list[tuple[int, str, str]]:
    """One seed after the other; magnitude needs no data, so one seed is all."""
    seeds, patterns = (SEEDS[:1], ["50 %", "2:4"]) if tiny else (SEEDS, list(PATTERNS))
    return [(seed, pattern, solver) for seed in seeds for pattern in patterns for solver in SOLVERS
            if seed == 0 or solver != "magnitude"]


def _dense(options: Any, metric: Perplexity) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    measured = metric.measure(model, Context(tokenizer))
    return {"solver": "dense", "pattern": "", "seed": 0, "perplexity": measured.value, "protocol": measured.protocol}


def _cell(options: Any, metric: Perplexity, solver: str, pattern: str, seed: int) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    stage = Stage(("linear",), Budget(PATTERNS[pattern]), NM(2, 4) if pattern == "2:4" else Unstructured(), SOLVERS[solver])
    text = Calibration("builtin", samples=4, length=64) if options.tiny else Calibration("c4", samples=64, length=512)
    pruned = prune(model, Recipe((stage,), text, metrics=(), prompts=(), seed=seed), tokenizer=tokenizer)
    measured = metric.measure(model, Context(tokenizer))
    errors = [site.error for site in pruned.report.sites if site.error is not None]
    return {"solver": solver, "pattern": pattern, "seed": seed, "perplexity": measured.value,
            "sparsity": pruned.report.sparsity, "error": statistics.fmean(errors) if errors else None,
            "seconds": {name: round(value, 1) for name, value in pruned.report.seconds.items()}}


def _kept(dtype: str) -> list[dict[str, Any]]:
    return [cell for cell in kept_rows(KEPT) if cell["dtype"] == dtype]


def _keep(cell: dict[str, Any], options: Any) -> dict[str, Any]:
    print(cell, flush=True)
    cell |= {"dtype": options.dtype, "commit": environment()["commit"]}
    return cell if options.tiny else keep_row(KEPT, cell)


def _table(cells: list[dict[str, Any]]) -> str:
    found: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        found.setdefault((cell["solver"], cell["pattern"]), []).append(cell["perplexity"])
    patterns = [pattern for pattern in PATTERNS if all((solver, pattern) in found for solver in SOLVERS)]
    rows = [["dense", *[f"{found['dense', ''][0]:.2f}"] * len(patterns)]]
    rows += [[solver, *[_mean(found.get((solver, pattern), [])) for pattern in patterns]] for solver in SOLVERS]
    return table(["", *patterns], rows)


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    digits = 2 if mean < 100 else 1 if mean < 1000 else 0
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


if __name__ == "__main__":
    main()
