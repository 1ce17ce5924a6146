"""How much should each layer give? Perplexity of SmolLM2 at 70 % with SparseGPT, by allocator and by search, on two texts that
neither saw.

Every finished row is kept in build/, so that an interrupted run goes on where it stopped; --only measures
some of them and writes no result, so that two processes can share the work.
"""

import tempfile
from pathlib import Path
from typing import Any

from _harness import (
    GO_ON,
    LEVELS,
    ROOT,
    WRITE,
    arguments,
    environment,
    keep_row,
    kept_rows,
    model_and_tokenizer,
    perplexities,
    table,
    write,
)
from prunus import Budget, Calibration, Recipe, Stage, prune
from prunus.allocation import Allocator
from prunus.allocation.absorption import Absorption
from prunus.allocation.dlp import DLP
from prunus.allocation.erk import ERK
from prunus.allocation.fisher import Fisher
from prunus.allocation.owl import OWL
from prunus.allocation.reconstruction import Reconstruction
from prunus.allocation.sensitivity import Sensitivity
from prunus.allocation.uniform import Uniform
from prunus.search.plan import Search
from prunus.search.strategies import Strategy
from prunus.search.strategies.cmaes import CMAES
from prunus.search.strategies.ddpg import DDPG
from prunus.search.strategies.dynamic import Dynamic
from prunus.search.strategies.evolution import Evolution
from prunus.search.strategies.local import Local
from prunus.search.strategies.ppo import PPO
from prunus.search.strategies.random import Random
from prunus.search.strategies.reinforce import Reinforce
from prunus.search.strategies.sac import SAC
from prunus.solvers.sparsegpt import SparseGPT

ALLOCATORS: dict[str, Allocator] = {
    "uniform": Uniform(), "ERK": ERK(), "OWL": OWL(), "DLP": DLP(), "reconstruction": Reconstruction(), "sensitivity": Sensitivity(),
    "Fisher": Fisher(), "absorption on OWL": Absorption(),
}
STRATEGIES: dict[str, Strategy] = {
    "REINFORCE": Reinforce(), "evolution": Evolution(), "CMA-ES": CMAES(), "PPO": PPO(reward="terminal", features=("unit",)),
    "SAC": SAC(reward="terminal"), "DDPG": DDPG(reward="terminal"), "dynamic": Dynamic(), "local": Local(), "random": Random(),
}
LOOKS = 150.0
KEPT = ROOT / "build" / "how_much_each_layer_gives"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, go_on=GO_ON, write=WRITE,
                        only={"nargs": "*", "default": [], "help": "names of rows"})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) if options.tiny else KEPT
        rows = kept_rows(home / "rows.jsonl", "how_much_each_layer_gives" if options.go_on else "")
        for name in ["dense", *(("uniform", "OWL", "dynamic") if options.tiny else (*ALLOCATORS, *STRATEGIES))]:
            if name not in {row["allocator"] for row in rows} and _wanted(options, name):
                rows.append(keep_row(home / "rows.jsonl", _row(options, name, home)))
                print(rows[-1], flush=True)
    if options.only:
        return
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        write("how_much_each_layer_gives", "; ".join(rows[0]["protocols"]), rows, {"how_much_each_layer_gives": shown},
              calibration="c4 train, 64 sequences of 512 tokens, seed 0", dtype=options.dtype,
              search=f"from Fisher's answer, {LOOKS:g} looks at 12 sequences of 256 tokens that the model wrote itself, 4 more held out")


def _wanted(options: Any, name: str) -> bool:
    return not options.write and (not options.only or name in options.only)


def _row(options: Any, name: str, home: Path) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    row: dict[str, Any] = {"allocator": name, "commit": environment()["commit"]}
    if name != "dense":
        text = Calibration("builtin", samples=4, length=64) if options.tiny else Calibration("c4", samples=64, length=512)
        stage = Stage(budget=Budget(0.3), solver=SparseGPT(), allocation=ALLOCATORS.get(name, Fisher()),
                      search=_search(options, name, home))
        report = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report
        shares = report.allocation[0].values()
        row |= {"sparsity": report.sparsity, "least": min(shares), "most": max(shares),
                "seconds": {key: round(value, 1) for key, value in report.seconds.items()}}
        for found in report.searches:
            row |= {"search": {key: getattr(found, key) for key in ("first", "best", "held_out_first", "held_out_best", "kept", "spent")}}
    return row | perplexities(model, tokenizer, options.tiny)


def _search(options: Any, name: str, home: Path) -> Search | None:
    if name not in STRATEGIES:
        return None
    text = Calibration("self", samples=4 if options.tiny else 16, length=32 if options.tiny else 256)
    return Search(STRATEGIES[name], 4.0 if options.tiny else LOOKS, LEVELS, text, store=str(home / "levels"))


def _title(name: str) -> str:
    return f"search from Fisher: {name}" if name in STRATEGIES else name


def _table(rows: list[dict[str, Any]]) -> str:
    """Perplexities, and the gap to the dense model as a share of uniform's."""
    known = {row["allocator"]: row["perplexity"] for row in rows}
    texts = ["WikiText-2", "C4"][: len(known["dense"])]
    return table(
        ["decided by", "least", "most", *texts, *(f"gap, {text}" for text in texts)],
        [[_title(row["allocator"]), *(f"{row.get(end, 0):.3f}" for end in ("least", "most")),
          *(f"{value:.1f}" for value in row["perplexity"]),
          *(f"{(value - dense) / (uniform - dense):.2f}" for value, dense, uniform
            in zip(row["perplexity"], known["dense"], known["uniform"], strict=True))]
         for row in sorted(rows, key=lambda row: row["perplexity"])])


if __name__ == "__main__":
    main()
