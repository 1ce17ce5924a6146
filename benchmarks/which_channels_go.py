"""Which channels should go? Perplexity of SmolLM2 without some of its channels, by who chooses them, how much every block gives and
whether what stays is refitted; the gap to the dense model beside that of FLAP as its authors' code does it, and that of magnitude.

Of attention, whole key/value groups go with their queries: SmolLM2 has three in a block. FLAP's paper gives every matrix a bias for
what goes; SmolLM2's have none, so the rows that do as it does add them first.

Finished rows are kept in build/, so that an interrupted benchmark goes on where it stopped.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from _harness import GO_ON, ROOT, WRITE, arguments, environment, keep_row, kept_rows, model_and_tokenizer, perplexities, table, write
from prunus import Budget, Calibration, Recipe, Stage, describe, prune
from prunus.allocation import Allocator
from prunus.allocation.ranking import Ranking
from prunus.allocation.uniform import Uniform
from prunus.criteria import saliency
from prunus.criteria.flap import FLAP
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.obs import OBS
from prunus.criteria.taylor import Taylor
from prunus.criteria.wanda import Wanda
from prunus.recovery.distill import Distill
from prunus.recovery.patch import Patch
from prunus.search.plan import Search
from prunus.search.strategies.masks import Masks
from prunus.sites import ChannelSite, Site
from prunus.solvers import Solver
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT
from prunus.solvers.subset import Subset
from prunus.stats import InputStats

SPARSITIES = (0.2, 0.3)
PAPER = "FLAP as its paper does it: ranking, biases"
LEARNED = "OBS, masks learned in 60 looks, refitted"
CODE = "FLAP as its authors' code does it: ranking of squares in attention, biases"
MORE = ", on more text"  # rows so named: 192 sequences instead of 64
REPAIRED = f"Taylor, refitted, ranking, repaired{MORE}"
DISTILLED = f"Taylor, refitted, ranking, distilled{MORE}"
RECOVERIES = {"repaired": Patch(), "distilled": Distill()}  # by a word of the row


@dataclass(frozen=True)
class Squares(Ranking):
    """As the authors' code does, which squares the saliencies of attention before they are standardised."""

    def measure(self, site: Site, weight: torch.Tensor, stats: InputStats, loss: Any) -> list[float]:
        assert isinstance(site, ChannelSite)
        columns = saliency(self.criterion, weight, stats, loss).sum(0).cpu().double()
        squared = columns**2 if site.width > 1 else columns  # a group of heads has several columns
        found: list[float] = self._standardised(site, squared).sort().values.tolist()
        return found


WAYS: dict[str, tuple[Solver, Allocator]] = {  # row: (solver, how much every site gives)
    "magnitude": (Mask(Magnitude()), Uniform()),
    "Wanda": (Mask(Wanda()), Uniform()),
    "FLAP": (Mask(FLAP()), Uniform()),
    "FLAP, ranking": (Mask(FLAP()), Ranking()),
    PAPER: (Mask(FLAP()), Ranking()),
    CODE: (Mask(FLAP()), Squares()),
    "Taylor": (Mask(Taylor()), Uniform()),
    "Taylor, ranking": (Mask(Taylor()), Ranking(Taylor(), standardise=False)),
    "FLAP, refitted": (Refit(FLAP()), Uniform()),
    "FLAP, refitted, ranking": (Refit(FLAP()), Ranking()),
    "OBS, refitted": (Refit(OBS()), Uniform()),
    LEARNED: (Refit(OBS()), Uniform()),
    "OBS, refitted, ranking": (Refit(OBS()), Ranking(OBS())),
    "Taylor, refitted": (Refit(Taylor()), Uniform()),
    "Taylor, refitted, ranking": (Refit(Taylor()), Ranking(Taylor(), standardise=False)),
    "grouped OBS (sparsegpt)": (SparseGPT(), Uniform()),
    "grouped OBS (sparsegpt), ranking by the loss": (SparseGPT(), Ranking(Taylor(), standardise=False)),
    "column subset (subset)": (Subset(), Uniform()),
    "Taylor, refitted, ranking, repaired": (Refit(Taylor()), Ranking(Taylor(), standardise=False)),
    REPAIRED: (Refit(Taylor()), Ranking(Taylor(), standardise=False)),
    DISTILLED: (Refit(Taylor()), Ranking(Taylor(), standardise=False)),
    f"{PAPER}{MORE}": (Mask(FLAP()), Ranking()),
    f"{CODE}{MORE}": (Mask(FLAP()), Squares()),
}
KEPT = ROOT / "build" / "which_channels_go"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, go_on=GO_ON, write=WRITE,
                        only={"nargs": "*", "default": [], "help": "names of rows"})
    with tempfile.TemporaryDirectory() as folder:
        file = (Path(folder) if options.tiny else KEPT) / "rows.jsonl"
        rows = kept_rows(file, "which_channels_go" if options.go_on else "")
        for name, sparsity in [("dense", 0.0), *((name, sparsity) for sparsity in SPARSITIES for name in WAYS)]:
            known = any((row["name"], row["sparsity"]) == (name, sparsity) for row in rows)
            if not known and not options.write and (not options.only or name in options.only):
                rows.append(keep_row(file, _row(options, name, sparsity)))
                print(rows[-1], flush=True)
    if options.only:
        return
    shown = _shown(rows)
    print(shown)
    if not options.tiny:
        write("which_channels_go", "; ".join(rows[0]["protocols"]), rows, {"which_channels_go": shown},
              calibration="c4 train, 64 sequences of 512 tokens (on more text: 192), seed 0", dtype=options.dtype)


def _row(options: Any, name: str, sparsity: float) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    row: dict[str, Any] = {"name": name, "sparsity": sparsity, "commit": environment()["commit"]}
    if name in WAYS:
        solver, allocation = WAYS[name]
        if name.startswith((PAPER, CODE)):
            _give_biases(model)
        samples = 192 if name.endswith(MORE) else 64
        text = Calibration("builtin", samples=4, length=64) if options.tiny else Calibration("c4", samples=samples, length=512)
        stage = Stage(("channel",), Budget(1 - sparsity), solver=solver, allocation=allocation,
                      recovery=next((value for word, value in RECOVERIES.items() if word in name), None),
                      search=_learning(options.tiny) if name == LEARNED else None)
        report = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report
        row |= {"gone": report.sparsity, "seconds": {key: round(value, 1) for key, value in report.seconds.items()},
                **{kind: _mean([record.reached for record in report.sites if word in record.site])
                   for kind, word in (("attention", "attn"), ("mlp", "mlp"))}}
    return row | perplexities(model, tokenizer, options.tiny)


def _learning(tiny: bool) -> Search:
    return Search(Masks(), 2 if tiny else 60, text=Calibration("self", samples=20, length=32 if tiny else 256))


def _give_biases(model: Any) -> None:
    """Every matrix that reads channels gets a bias of zeros."""
    for site in describe(model).sites("channel"):
        assert isinstance(site, ChannelSite)
        consumer = model.get_submodule(site.consumer)
        consumer.bias = torch.nn.Parameter(consumer.weight.new_zeros(consumer.weight.shape[0]), requires_grad=False)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _shown(rows: list[dict[str, Any]]) -> str:
    """Perplexities, and the gap to the dense model as a share of FLAP's and of magnitude's at the same sparsity."""
    dense = next(row["perplexity"] for row in rows if row["name"] == "dense")
    texts = ["WikiText-2", "C4"][: len(dense)]
    lines = []
    for sparsity in SPARSITIES:
        found = {row["name"]: row for row in rows if row["sparsity"] == sparsity}
        bases = [found[name]["perplexity"] for name in (CODE, "magnitude")]
        for name in sorted(found, key=lambda name: found[name]["perplexity"]):
            row = found[name]
            lines.append([f"{sparsity:.0%}", name, f"{row['attention']:.0%}", f"{row['mlp']:.0%}",
                          *(f"{value:.4g}" for value in row["perplexity"]),
                          *(f"{(value - whole) / (other - whole):.3g}" for base in bases
                            for value, whole, other in zip(row["perplexity"], dense, base, strict=True))])
    return table(["removed", "who chooses", "of heads", "of MLP channels", *texts,
                  *(f"gap / {base}'s, {text}" for base in ("FLAP", "magnitude") for text in texts)],
                 [*lines, ["", "dense", "", "", *(f"{value:.4g}" for value in dense), *[""] * 2 * len(texts)]])


if __name__ == "__main__":
    main()
