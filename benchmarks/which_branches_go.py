"""Which attentions and MLPs may go? Perplexity of SmolLM2 without a fifth of its block weights, by who chooses and with what
repair, on two texts that neither saw; and what the choosing costs.

Finished rows are kept in build/, so that an interrupted benchmark goes on where it stopped.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from _harness import GO_ON, ROOT, WRITE, Timer, arguments, environment, keep_row, kept_rows, model_and_tokenizer, perplexities, table, write
from prunus import Budget, Calibration, Recipe, Stage, allocate, describe
from prunus.allocation import Allocator
from prunus.allocation.contiguous import Contiguous
from prunus.allocation.influence import Influence
from prunus.calibration.placement import Placement
from prunus.recovery.patch import Patch
from prunus.search.fitness import Objective
from prunus.search.plan import Search
from prunus.search.strategies import Strategy
from prunus.search.strategies.progressive import Progressive
from prunus.search.strategies.regression import Regression
from prunus.silence import silenced
from prunus.sites import SublayerSite

SPARSITY = 0.2
BLOCKS = Progressive(per="block", denominator="none", protected=1)  # as SLEB's authors run it: the first and the last block stay
ONCE = Progressive(per="block", denominator="none", progressive=False, protected=2)
WAYS: dict[str, tuple[Allocator, Strategy | None, Objective, int, int]] = {
    # row: (first answer, search, what it looks at, sequences that candidates are repaired on, sequences that the answer is repaired on)
    "blocks by cosine (ShortGPT)": (Influence(per="block"), None, "divergence", 0, 64),
    "blocks by cosine, repaired on more text": (Influence(per="block"), None, "divergence", 0, 192),
    "one run of blocks by angle (Gromov)": (Contiguous(), None, "divergence", 0, 64),
    "branches by cosine (LLM-Drop)": (Influence(), None, "divergence", 0, 64),
    "blocks by gradient (Shortened LLaMA)": (Influence(per="block", metric="taylor"), None, "divergence", 0, 64),
    "blocks once, by perplexity (Shortened LLaMA)": (Influence(per="block"), ONCE, "perplexity", 0, 64),
    "blocks one by one, by perplexity (SLEB)": (Influence(per="block"), BLOCKS, "perplexity", 0, 64),
    "blocks by regression (Bonsai)": (Influence(per="block"), Regression(per="block"), "divergence", 0, 64),
    "blocks one by one, looked at as repaired": (Influence(per="block"), BLOCKS, "divergence", 8, 64),
    "branches one by one": (Influence(), Progressive(denominator="none"), "divergence", 0, 64),
    "branches one by one, per weight": (Influence(), Progressive(), "divergence", 0, 64),
    "branches one by one, per weight, all looked at again": (Influence(), Progressive(lazy=False), "divergence", 0, 64),
    "branches once, per weight": (Influence(), Progressive(progressive=False), "divergence", 0, 64),
    "branches by regression (Bonsai)": (Influence(per="block"), Regression(), "divergence", 0, 64),
}
KEPT = ROOT / "build" / "which_branches_go"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, go_on=GO_ON, write=WRITE,
                        only={"nargs": "*", "default": [], "help": "names of rows"})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) if options.tiny else KEPT
        rows = kept_rows(home / "rows.jsonl", "which_branches_go" if options.go_on else "")
        for name in ("dense", *WAYS):
            if name not in {row["name"] for row in rows} and not options.write and (not options.only or name in options.only):
                rows.append(keep_row(home / "rows.jsonl", _row(options, name)))
                print(rows[-1], flush=True)
    if options.only:
        return
    tables = {"which_branches_go": _quality(rows), "what_choosing_branches_costs": _cost(rows)}
    print("\n\n".join(tables.values()))
    if not options.tiny:
        write("which_branches_go", "; ".join(rows[0]["protocols"]), rows, tables,
              calibration="c4 train, 64 sequences of 512 tokens (the repair on more text: 192), seed 0",
              search="8 sequences of 256 tokens that the model wrote itself, 2 of them held out", dtype=options.dtype)


def _row(options: Any, name: str) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)

    if name == "dense":
        return {"name": name, "commit": environment()["commit"], **perplexities(model, tokenizer, options.tiny)}
    first, strategy, objective, rehearsed, repaired = WAYS[name]
    looked = Calibration("self", samples=4 if options.tiny else 8, length=32 if options.tiny else 256)
    if options.tiny:  # of few blocks none can be left alone
        rehearsed, strategy = min(rehearsed, 2), replace(strategy, protected=0) if isinstance(strategy, Progressive) else strategy
    search = Search(strategy, text=looked, objective=objective, repaired=rehearsed) if strategy else None
    text = Calibration("builtin", samples=4, length=64) if options.tiny else Calibration("c4", samples=64, length=512)
    sparsity = 0.25 if options.tiny else SPARSITY
    stage = Stage(("sublayer",), Budget(1 - sparsity), allocation=first, search=search, recovery=Patch())
    found = allocate(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer)
    anatomy = describe(model)
    gone = [site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite) and found.allocation[site.name]]
    row = {"name": name, "commit": environment()["commit"], "gone": [site.name for site in gone],
           "seconds": {key: round(value, 1) for key, value in found.seconds.items()}}
    if found.search:
        row |= {"searched": {key: getattr(found.search, key) for key in ("questions", "block_passes", "block_passes_plain", "kept")},
                "searching": round(found.search.seconds["searching"], 1)}
    with silenced(model, gone):
        row |= {"cut": perplexities(model, tokenizer, options.tiny)["perplexity"]}
    tokens = replace(text, samples=4 if options.tiny else repaired).tokens(tokenizer, model, 0)
    with Timer() as timer:
        Patch().recover(model, anatomy, gone, {}, tokens, Placement(), 2)
    with silenced(model, gone):
        return row | {"repairing": round(timer.wall, 1), **perplexities(model, tokenizer, options.tiny)}


def _quality(rows: list[dict[str, Any]]) -> str:
    """Perplexities as cut and as repaired, and the repaired gap to the dense model as a share of ShortGPT's as cut."""
    dense = rows[0]["perplexity"]
    base = next(row["cut"] for row in rows if "ShortGPT" in row["name"])
    texts = ["WikiText-2", "C4"][: len(dense)]
    lines = [[row["name"], str(sum("attn" in name for name in row["gone"])), str(sum("mlp" in name for name in row["gone"])),
              *(f"{value:.1f}" for value in (*row["cut"], *row["perplexity"])),
              *(f"{(value - whole) / (short - whole):.2f}" for value, whole, short in zip(row["perplexity"], dense, base, strict=True))]
             for row in sorted(rows[1:], key=lambda row: row["perplexity"])]
    return table(["who chooses", "attentions", "MLPs", *(f"cut, {text}" for text in texts), *(f"repaired, {text}" for text in texts),
                  *(f"gap, {text}" for text in texts)],
                 [*lines, ["dense", "", "", *(f"{value:.1f}" for value in dense), *[""] * 2 * len(texts)]])


def _cost(rows: list[dict[str, Any]]) -> str:
    """Block passes of the search text, computed and without what is kept of other candidates; and seconds."""
    lines = [[row["name"], str(row["searched"]["questions"]), str(row["searched"]["block_passes"]),
              str(row["searched"]["block_passes_plain"]), f"{row['searching']:.0f}", f"{row['repairing']:.0f}"]
             for row in rows[1:] if "searched" in row]
    return table(["search", "candidates", "block passes", "without keeping states", "seconds", "seconds of the repair"], lines)


if __name__ == "__main__":
    main()
