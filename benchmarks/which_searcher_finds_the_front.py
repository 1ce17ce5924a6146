"""Which searcher finds the front? Hypervolume after so many evaluations on a made-up model of six blocks; nothing is trained or run.

The surface has what real ones have: a block's attention and MLP bear more loss the more of them is gone, blocks differ in that, what
is lost beside each other adds up to more than its sum, the error ends at chance, and a validation set of 500 examples leaves a grain.
Parameters are those of MiniLM-L6. SMALL chooses blocks, heads and units for all; MEDIUM heads and units of every block.
"""

import itertools
import math
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from _harness import ROOT, arguments, keep_row, kept_rows, table, write
from prunus.lookup import find, names
from prunus.search.explore import explore
from prunus.search.pareto import bootstrap_ranks, hypervolume, quantiles, regret
from prunus.search.searchers import Question
from prunus.search.space import Candidate

BLOCKS, HEADS, UNITS = 6, 12, 1536
HEAD, UNIT = 4 * 384 * 32, 2 * 384  # weights
FLOOR, CHANCE, EXAMPLES = 0.08, 0.5, 500
CORNER = (CHANCE + 0.05, 1.05)
BUDGETS = (25, 50, 100)
MODELS = ("lsbo", "rsbo")  # which take a second or so per question, and have the second budget
SEARCHERS = [name for name in names("search.searchers") if name != "asha"]  # which is for candidates that are trained
KEPT = ROOT / "build" / "which_searcher_finds_the_front" / "runs.jsonl"


@dataclass(frozen=True)
class Shaped:
    """SMALL or MEDIUM."""

    small: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        return (BLOCKS, HEADS, UNITS) if self.small else (HEADS + 1, UNITS + 1) * BLOCKS

    @property
    def smallest(self) -> Candidate:
        return tuple(0 for _ in self.sizes)

    @property
    def largest(self) -> Candidate:
        return tuple(size - 1 for size in self.sizes)

    def draw(self, rng: random.Random) -> Candidate:
        return tuple(rng.randrange(size) for size in self.sizes)

    def remaining(self, candidate: Candidate) -> float:
        return sum(heads * HEAD + units * UNIT for heads, units in self.widths(candidate)) / (BLOCKS * (HEADS * HEAD + UNITS * UNIT))

    def told(self, candidate: Candidate) -> tuple[float | None, ...]:
        return None, self.remaining(candidate)

    def widths(self, candidate: Candidate) -> list[tuple[int, int]]:
        """Heads and units of every block."""
        if not self.small:
            return list(zip(candidate[::2], candidate[1::2], strict=True))
        blocks, heads, units = (value + 1 for value in candidate)
        return [(heads, units) if index < blocks else (0, 0) for index in range(BLOCKS)]

    def worn(self, model: Any, candidate: Candidate) -> AbstractContextManager[None]:
        raise NotImplementedError("there is no model")


def error(genome: Shaped, candidate: Candidate) -> float:
    """Of a classifier with two classes, on its validation set."""
    rng = random.Random(0)
    gone = [((1 - heads / HEADS) ** 2, (1 - units / UNITS) ** 3) for heads, units in genome.widths(candidate)]
    bears = [(rng.uniform(0.02, 0.15), rng.uniform(0.03, 0.25)) for _ in gone]
    lost = [(rate[0] * part[0], rate[1] * part[1]) for rate, part in zip(bears, gone, strict=True)]
    sums = [sum(pair) for pair in lost]
    damage = sum(sums) + 2 * sum(one * other for one, other in (*lost, *itertools.pairwise(sums)))
    exact = FLOOR + (CHANCE - FLOOR) * (1 - math.exp(-damage))
    grain = random.Random(repr(candidate)).gauss(0, 0.2 * math.sqrt(exact * (1 - exact) / EXAMPLES))
    return round((exact + grain) * EXAMPLES) / EXAMPLES


def main() -> None:
    options = arguments(__doc__ or "", seeds={"type": int, "default": 10})
    budgets, seeds = ((11, 12, 24), 2) if options.tiny else (BUDGETS, options.seeds)
    rows = [] if options.tiny else kept_rows(KEPT)
    for shape in ("SMALL", "MEDIUM"):
        for seed in range(seeds):
            for name in SEARCHERS:
                if not any((row["shape"], row["searcher"], row["seed"]) == (shape, name, seed) for row in rows):
                    row = _row(shape, name, seed, budgets)
                    rows.append(row if options.tiny else keep_row(KEPT, row))
    tables = {f"which_searcher_{shape.lower()}": _table([row for row in rows if row["shape"] == shape], budgets)
              for shape in ("SMALL", "MEDIUM")}
    print("\n\n".join(tables.values()))
    if not options.tiny:
        protocol = (f"error and parameters of a made-up model with {BLOCKS} blocks of {HEADS} heads and {UNITS} units; hypervolume to the "
                    f"corner {CORNER}; medians over {seeds} seeds; one thread")
        write("which_searcher_finds_the_front", protocol, [_short(row, budgets) for row in rows], tables)


def _row(shape: str, name: str, seed: int, budgets: Sequence[int]) -> dict[str, Any]:
    genome = Shaped(shape == "SMALL")

    def value(question: Question) -> tuple[float, float]:
        return error(genome, question.candidate), genome.remaining(question.candidate)

    start = time.perf_counter()
    found = explore(genome, find("search.searchers", name)(), value, ("error", "params"), budgets[1 if name in MODELS else 2], seed)
    return {"shape": shape, "searcher": name, "seed": seed, "seconds": round(time.perf_counter() - start, 3),
            "values": [[round(number, 6) for number in row] for row in found.values.tolist()]}


def _short(row: dict[str, Any], budgets: Sequence[int]) -> dict[str, Any]:
    """What is kept of a run for good: not every value."""
    volumes = {str(count): round(hypervolume(row["values"][:count], CORNER), 6) for count in budgets if count <= len(row["values"])}
    return {**{key: value for key, value in row.items() if key != "values"}, "hypervolume": volumes}


def _table(rows: list[dict[str, Any]], budgets: Sequence[int]) -> str:
    """The best first, by the mean rank after the second budget."""
    known = quantiles({f"{row['searcher']} {row['seed']}": row["values"][: budgets[1]] for row in rows})
    mine = {name: [row for row in rows if row["searcher"] == name] for name in SEARCHERS}
    regrets = {name: [regret(known[f"{name} {row['seed']}"]) for row in mine[name]] for name in SEARCHERS}
    ranks = bootstrap_ranks(regrets)
    lines = []
    for name in sorted(SEARCHERS, key=lambda name: ranks[name].mean):
        volumes = [statistics.median(hypervolume(row["values"][:count], CORNER) for row in mine[name]) for count in budgets]
        seconds = statistics.median(row["seconds"] / len(row["values"]) for row in mine[name])
        lines.append([name, *(f"{found:.4f}" if len(mine[name][0]["values"]) >= count else "" for found, count in
                              zip(volumes, budgets, strict=True)), f"{statistics.median(regrets[name]):.4f}",
                      f"{ranks[name].mean:.1f} [{ranks[name].low:.1f}, {ranks[name].high:.1f}]", f"{seconds:.3f}"])
    heads = [*(f"after {count}" for count in budgets), f"regret after {budgets[1]}", "rank [95 %]", "seconds per question"]
    return table(["searcher", *heads], lines)


if __name__ == "__main__":
    main()
