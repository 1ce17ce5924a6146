"""Does learning pay? Agents beside other searches: equal looks, equal start, five seeds, on SmolLM2 at 70 %.

What a search has found is valued on held-out sequences of its text. Finished runs are kept in build/, so that an interrupted
benchmark goes on where it stopped; --only runs a part of it and writes no result, so that two processes can share the work.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from _harness import GO_ON, LEVELS, ROOT, WRITE, arguments, environment, keep_row, kept_rows, model_and_tokenizer, table, write
from prunus import Budget, Calibration, Recipe, Stage, allocate
from prunus.allocation import Allocator
from prunus.allocation.dlp import DLP
from prunus.allocation.fisher import Fisher
from prunus.allocation.owl import OWL
from prunus.allocation.reconstruction import Reconstruction
from prunus.allocation.uniform import Uniform
from prunus.search.plan import Search, SearchRecord
from prunus.search.strategies import Strategy
from prunus.search.strategies.cmaes import CMAES
from prunus.search.strategies.ddpg import DDPG
from prunus.search.strategies.dynamic import Dynamic
from prunus.search.strategies.evolution import Evolution
from prunus.search.strategies.local import Local
from prunus.search.strategies.ppo import PPO
from prunus.search.strategies.random import Random
from prunus.search.strategies.sac import SAC
from prunus.solvers.sparsegpt import SparseGPT

STRATEGIES: dict[str, Strategy] = {
    "random": Random(), "local": Local(), "evolution": Evolution(), "evolution, per matrix": Evolution(per="matrix"),
    "dynamic": Dynamic(), "CMA-ES": CMAES(),
    "PPO, difference": PPO(), "PPO, ratio": PPO(reward="ratio"), "PPO, local": PPO(reward="local"), "PPO, terminal": PPO(reward="terminal"),
    "PPO, terminal, depth and remaining": PPO(reward="terminal", features=("depth", "remaining")),
    "PPO, terminal, width 0.1": PPO(reward="terminal", width=0.1),
    "DDPG, terminal": DDPG(reward="terminal"), "SAC, terminal": SAC(reward="terminal"),
}
ALLOCATORS: dict[str, Allocator] = {"OWL": OWL(), "DLP": DLP(), "reconstruction": Reconstruction(), "Fisher": Fisher()}
KEPT = ROOT / "build" / "does_learning_pay"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, go_on=GO_ON, write=WRITE, looks={"type": float, "default": 100.0},
                        only={"nargs": "*", "default": [], "help": "names of rows"},
                        seeds={"type": int, "default": 5})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) if options.tiny else KEPT
        rows = kept_rows(home / "runs.jsonl", "does_learning_pay" if options.go_on else "")
        names = ["random", "dynamic"] if options.tiny else [*STRATEGIES, *ALLOCATORS]
        for name, seed in [(name, seed) for seed in range(1 if options.tiny else options.seeds) for name in names]:
            if _wanted(options, name) and not any((row["name"], row["seed"]) == (name, seed) for row in rows):
                if name in ALLOCATORS and seed:
                    continue  # nothing is drawn
                rows.append(keep_row(home / "runs.jsonl", _run(options, name, seed, home)))
                print({key: value for key, value in rows[-1].items() if key != "curve"}, flush=True)
    if options.only:
        return
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        write("does_learning_pay", f"SparseGPT, 70 %, C4, 64 sequences of 512 tokens; {options.looks:g} looks at 6 sequences of 128 tokens "
              f"of WikiText-2 train, 2 more held out; {options.dtype}", rows, {"does_learning_pay": shown})


def _wanted(options: Any, name: str) -> bool:
    return not options.write and (not options.only or name in options.only)


def _run(options: Any, name: str, seed: int, home: Path) -> dict[str, Any]:
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    calibration = Calibration("builtin", samples=4, length=32) if options.tiny else Calibration("c4", samples=64, length=512)
    text = Calibration("builtin", "test", samples=4, length=32) if options.tiny else Calibration("wikitext2", samples=8, length=128)
    strategy, looks = (Random(), 1.0) if name in ALLOCATORS else (STRATEGIES[name], 8.0 if options.tiny else options.looks)
    search = Search(strategy, looks, LEVELS, text, store=str(home / "levels"), seed=seed)
    stage = Stage(budget=Budget(0.3), solver=SparseGPT(), allocation=ALLOCATORS.get(name, Uniform()), search=search)
    found = allocate(model, Recipe((stage,), calibration, (), ()), tokenizer=tokenizer)
    record = found.search
    assert isinstance(record, SearchRecord)
    return {"name": name, "seed": seed, "commit": environment()["commit"], "questions": record.questions,
            **{key: getattr(record, key) for key in ("first", "best", "held_out_first", "held_out_best", "spent")},
            "last": record.curve[-1].value, "last_held_out": record.curve[-1].held_out, "seconds": record.seconds["searching"],
            "passes": record.block_passes, "plain_passes": record.block_passes_plain,
            "curve": [(moment.spent, moment.value, moment.held_out) for moment in record.curve]}


def _table(rows: list[dict[str, Any]]) -> str:
    """Means and deviations over seeds; in the order of the held-out value of what was best on the search text."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]

        def shown(key: str, places: int = 3, mine: list[dict[str, Any]] = mine) -> str:
            values = [row[key] for row in mine]
            return f"{statistics.fmean(values):.{places}f}" + (f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else "")

        lines.append((statistics.fmean(row["last_held_out"] for row in mine),
                      [name, str(len(mine)), shown("last"), shown("last_held_out"), shown("questions", 0), shown("seconds", 0)]))
    for first in [row for row in rows if row["name"] in STRATEGIES][:1]:
        lines.append((first["held_out_first"],
                      ["uniform, where all begin", "", f"{first['first']:.3f}", f"{first['held_out_first']:.3f}", "", ""]))
    return table(["", "seeds", "search text, nats per token", "held-out text", "candidates", "seconds"],
                 [line for _, line in sorted(lines, key=lambda line: line[0])])


if __name__ == "__main__":
    main()
