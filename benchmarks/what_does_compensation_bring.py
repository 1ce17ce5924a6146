"""What does compensation bring? Perplexity of SmolLM2 after channels have gone, with the kept ones refitted and not.

Both remove channels by the same criterion, from the statistics of the model as it is pruned so far; only the values of the
kept columns differ. Of attention, whole key/value groups go with their queries: SmolLM2 has three in a block.
"""

from typing import Any

from _harness import arguments, environment, model_and_tokenizer, table, write
from prunus import Budget, Calibration, Recipe, Stage, prune
from prunus.criteria import Criterion
from prunus.criteria.obs import OBS
from prunus.criteria.wanda import Wanda
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit

SPARSITIES = (0.2, 0.3)
CRITERIA: dict[str, Criterion] = {"Wanda": Wanda(), "OBS": OBS()}
SITES = {"attention and MLP": (), "MLP": ("*attn*",), "attention": ("*mlp*",)}


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"})
    metrics = [Perplexity("builtin", tokens=640, length=64)] if options.tiny else [
        Perplexity("wikitext2", length=512, tokens=20_480), Perplexity("c4", "validation", length=512, tokens=20_480)]
    rows = [_row(options, metrics)]
    for sites in SITES:
        for criterion in CRITERIA if sites == "attention and MLP" or not options.tiny else ():
            for sparsity in SPARSITIES if sites != "attention" else SPARSITIES[:1]:  # of three groups, one goes at both
                rows += [_row(options, metrics, sites, criterion, sparsity, refitted) for refitted in (False, True)]
    texts = ["WikiText-2", "C4"][: len(metrics)]
    shown = table(["channels of", "removed", "chosen by", *(f"{text}, {how}" for text in texts for how in ("as they were", "refitted")),
                   *(f"gap, {text}" for text in texts)],
                  [_cells(rows[0]["perplexity"], *pair) for pair in zip(rows[1::2], rows[2::2], strict=True)])
    print(shown)
    if not options.tiny:
        write("what_does_compensation_bring", "; ".join(rows[0]["protocols"]), rows, {"what_does_compensation_bring": shown},
              calibration="c4 train, 64 sequences of 512 tokens, seed 0", dtype=options.dtype)


def _row(options: Any, metrics: list[Perplexity], sites: str = "", criterion: str = "", sparsity: float = 0.0,
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
    measured = [metric.measure(model, Context(tokenizer)) for metric in metrics]
    row |= {"perplexity": [value.value for value in measured], "protocols": [value.protocol for value in measured]}
    print(row, flush=True)
    return row


def _cells(dense: list[float], plain: dict[str, Any], refitted: dict[str, Any]) -> list[str]:
    """Perplexities, and the gap to the dense model that is left, as a share of the gap without compensation."""
    pairs = list(zip(plain["perplexity"], refitted["perplexity"], strict=True))
    gaps = [f"{(after - base) / (before - base):.2f}" for (before, after), base in zip(pairs, dense, strict=True)]
    return [plain["sites"], f"{plain['sparsity']:.0%}", plain["criterion"], *(f"{value:.4g}" for pair in pairs for value in pair), *gaps]


if __name__ == "__main__":
    main()
