"""Does learning pay? Strategies at equal looks at the search text, from the same start, on the same level stores of SmolLM2.

Every run is valued on sequences of the search's corpus that it did not see, and on C4, which has nothing to do with it. Four
tables: the strategies beside allocators that do not search; what they have found by when; what agents need to learn; and
searches with other solvers, whose levels are other models. Finished runs are kept in build/, so that an interrupted benchmark
goes on where it stopped; --only runs some rows and writes no result, so that two processes can share the work.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from _harness import GO_ON, LEVELS, ROOT, WRITE, arguments, environment, keep_row, kept_rows, model_and_tokenizer, table, write
from prunus import Budget, Calibration, Recipe, Stage, allocate, describe
from prunus.allocation import Allocator, columns_of
from prunus.allocation.dlp import DLP
from prunus.allocation.fisher import Fisher
from prunus.allocation.owl import OWL
from prunus.allocation.reconstruction import Reconstruction
from prunus.figures import drawn
from prunus.granularity import Granularity, Unstructured
from prunus.search import search
from prunus.search.fitness import Fitness
from prunus.search.levels import LevelStore
from prunus.search.space import Candidate, Query, Space, Trial
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
from prunus.sites import ChannelSite, LinearSite, Site
from prunus.solvers import Solver
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT

MAIN: dict[str, Strategy] = {
    "random": Random(), "local": Local(), "dynamic": Dynamic(), "CMA-ES": CMAES(), "evolution": Evolution(), "REINFORCE": Reinforce(),
    "PPO": PPO(reward="terminal", features=("unit",)), "SAC": SAC(reward="terminal"), "DDPG": DDPG(reward="terminal"),
}
NEEDS: dict[str, tuple[str, Strategy]] = {  # row: (what is asked, strategy)
    "PPO, scalar state": ("state", PPO(reward="terminal")),
    "PPO, depth and remaining": ("state", PPO(reward="terminal", features=("depth", "remaining"))),
    "PPO, difference": ("reward", PPO(features=("unit",))), "PPO, ratio": ("reward", PPO(reward="ratio", features=("unit",))),
    "PPO, local": ("reward", PPO(reward="local", features=("unit",))),
    "PPO, scale 0.1": ("reward's scale", PPO(reward="terminal", features=("unit",), scale=0.1)),
    "PPO, scale 10": ("reward's scale", PPO(reward="terminal", features=("unit",), scale=10.0)),
    "DDPG, scale 10": ("reward's scale", DDPG(reward="terminal", scale=10.0)),
    "PPO, width 0.1": ("actions", PPO(reward="terminal", features=("unit",), width=0.1)),
    "PPO, width 0.3": ("actions", PPO(reward="terminal", features=("unit",), width=0.3)),
    "PPO, all of the text": ("text per episode", PPO(reward="terminal", features=("unit",), share=1.0)),
    "REINFORCE, per block": ("what departs together", Reinforce(per="block")),
    "REINFORCE, per matrix": ("what departs together", Reinforce(per="matrix")),
    "evolution, per sublayer": ("what departs together", Evolution(per="sublayer")),
    "evolution, per matrix": ("what departs together", Evolution(per="matrix")),
}
ALLOCATORS: dict[str, Allocator] = {"OWL": OWL(), "DLP": DLP(), "reconstruction": Reconstruction(), "Fisher": Fisher()}


@dataclass(frozen=True)
class Subject:
    """What is searched on: sites, their solver, and how much goes."""

    solver: Solver
    sites: str = "linear"
    sparsity: float = 0.7
    levels: tuple[float, ...] = LEVELS


CHANNELS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
SUBJECTS = {
    "SparseGPT, 70 %": Subject(SparseGPT()), "Wanda, 70 %": Subject(Mask()),
    "channels as they were, 20 %": Subject(Mask(), "channel", 0.2, CHANNELS),
    "channels refitted, 20 %": Subject(Refit(), "channel", 0.2, CHANNELS),
}
PLAIN = "SparseGPT, 70 %"
FEWER = 3  # seeds for what is asked beside the first table
KEPT = ROOT / "build" / "does_learning_pay"


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"}, go_on=GO_ON, write=WRITE, looks={"type": float, "default": 100.0},
                        only={"nargs": "*", "default": [], "help": "names of rows"}, seeds={"type": int, "default": 5})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) if options.tiny else KEPT
        rows = kept_rows(home / "runs.jsonl", "does_learning_pay" if options.go_on else "")
        bench = Bench(options, home)
        for name, subject, seed in _runs(options):
            known = any((row["name"], row["subject"], row["seed"]) == (name, subject, seed) for row in rows)
            if not (known or options.write or (options.only and name not in options.only and subject not in options.only)):
                rows.append(keep_row(home / "runs.jsonl", bench.run(name, subject, seed)))
                print({key: value for key, value in rows[-1].items() if key != "curve"}, flush=True)
    if options.only:
        return
    tables = {"does_learning_pay": _results(rows), "what_is_found_by_when": _by_when(rows), "what_agents_need": _needs(rows),
              "what_is_searched_on": _subjects(rows)}
    print("\n\n".join(tables.values()))
    if not options.tiny:
        write("does_learning_pay", f"SmolLM2, C4, 64 sequences of 512 tokens; {options.looks:g} looks at 6 sequences of 128 tokens of "
              "WikiText-2 train; held out: 18 more of them; C4: 16 sequences of 128 tokens of its validation split; KL(dense || pruned), "
              f"nats per token; {options.dtype}; one thread per process", rows, tables)
        _draw(rows, ROOT / "docs" / "images" / "does_learning_pay.png")


def _runs(options: Any) -> Iterator[tuple[str, str, int]]:
    """Row, subject and seed: every seed is finished for all rows of a table before the next begins."""
    if options.tiny:
        yield from [("random", PLAIN, 0), ("dynamic", PLAIN, 0), ("OWL", PLAIN, 0), ("REINFORCE", "channels refitted, 20 %", 0)]
        return
    for seed in range(options.seeds):
        yield from ((name, PLAIN, seed) for name in (*MAIN, *(ALLOCATORS if seed == 0 else ())))
    for seed in range(min(options.seeds, FEWER)):
        yield from ((name, PLAIN, seed) for name in NEEDS)
        yield from ((name, subject, seed) for subject in SUBJECTS if subject != PLAIN for name in ("REINFORCE", "evolution"))


class Bench:
    """One model, its level stores, and the services that value candidates."""

    def __init__(self, options: Any, home: Path) -> None:
        self.options, self.home = options, home
        self.model, self.tokenizer = model_and_tokenizer(options.tiny, options.dtype)
        self.anatomy = describe(self.model)
        corpus = ("builtin", "builtin", "builtin") if options.tiny else ("c4", "wikitext2", "c4")
        length = 24 if options.tiny else 128
        self.calibration = Calibration(corpus[0], samples=4 if options.tiny else 64, length=32 if options.tiny else 512)
        looked = Calibration(corpus[1], samples=6 if options.tiny else 24, length=length).tokens(self.tokenizer, self.model, 7919)
        self.texts = {"search": looked[:4] if options.tiny else looked[:6], "held_out": looked[4:] if options.tiny else looked[6:],
                      "other": Calibration(corpus[2], "validation", 16, length).tokens(self.tokenizer, self.model, 0)}
        self.services = cache(self._services)

    def run(self, name: str, subject: str, seed: int) -> dict[str, Any]:
        """One search, or one allocator's answer; what is best on the search text is valued elsewhere while no clock runs."""
        services, space = self.services(subject)
        first = self._first(name, space)
        strategy = {**MAIN, **{key: strategy for key, (_, strategy) in NEEDS.items()}}.get(name)
        curve: list[tuple[float, float, float, float]] = []
        start, paused, found = time.perf_counter(), 0.0, Trial(first, services["search"]([Query(first)])[0].value)

        def watch(spent: float, best: Trial) -> bool:
            nonlocal paused
            if not curve or best.value < curve[-1][2]:
                now = time.perf_counter()
                curve.append((spent, now - start - paused, best.value, services["held_out"]([Query(best.candidate)])[0].value))
                paused += time.perf_counter() - now
            return True

        questions = 1
        if strategy is not None:
            services["search"].forget()
            outcome = search(space, strategy, services["search"], first, 8.0 if self.options.tiny else self.options.looks, seed, watch)
            found, questions = outcome.best, len(outcome.trials)
        uniform = {key: service([Query(self._first("", space))])[0].value for key, service in services.items()}
        values = {key: service([Query(found.candidate)])[0].value for key, service in services.items()}
        return {"name": name, "subject": subject, "seed": seed, "commit": environment()["commit"], "uniform": uniform, "values": values,
                "questions": questions, "seconds": time.perf_counter() - start - paused if strategy else 0.0, "curve": curve,
                "levels": dict(zip([site.name for site in space.sites], [space.levels[level] for level in found.candidate], strict=True))}

    def _first(self, name: str, space: Space) -> Candidate:
        if name in ALLOCATORS:
            stage = Stage(budget=space.budget, solver=SparseGPT(), allocation=ALLOCATORS[name])
            return space.nearest(allocate(self.model, Recipe((stage,), self.calibration, (), ()), tokenizer=self.tokenizer).allocation)
        return space.nearest(dict.fromkeys((site.name for site in space.sites), space.budget.sparsity))

    def _services(self, subject: str) -> tuple[dict[str, Fitness], Space]:
        asked = SUBJECTS[subject]
        sites: tuple[Site, ...] = self.anatomy.sites(asked.sites)  # type: ignore[arg-type]
        tokens = self.calibration.tokens(self.tokenizer, self.model, 0)
        store = LevelStore.build(self.home / subject.replace(" ", "-"), self.model, self.anatomy, self._matrices(sites), tokens,
                                 asked.solver, asked.levels, subject, batch=2)
        errors = tuple(store.entries[_matrix(site)].errors for site in sites)
        known = asked.solver.needs == "gram"
        space = Space(sites, asked.levels, Budget(1 - asked.sparsity), errors if known else ())
        return {key: Fitness(self.model, self.anatomy, space, store, text, batch=1 if key == "search" else 4,
                             memory=2**31 if key == "search" else 2**28) for key, text in self.texts.items()}, space

    def _matrices(self, sites: Sequence[Site]) -> dict[LinearSite, Granularity]:
        shapes: dict[str, Granularity] = {_matrix(site): columns_of(site) if isinstance(site, ChannelSite) else Unstructured("matrix")
                                          for site in sites}
        return {site: shapes[site.name] for site in self.anatomy.sites("linear") if isinstance(site, LinearSite) and site.name in shapes}


def _matrix(site: Site) -> str:
    return site.consumer if isinstance(site, ChannelSite) else site.name


def _shown(values: Sequence[float], places: int = 3) -> str:
    """Mean and deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{places}f}{spread}"


def _of(rows: list[dict[str, Any]], name: str, subject: str = PLAIN) -> list[dict[str, Any]]:
    return [row for row in rows if row["name"] == name and row["subject"] == subject]


def _line(rows: list[dict[str, Any]], name: str) -> list[str]:
    mine = _of(rows, name)
    return [name, str(len(mine)), *(_shown([row["values"][text] for row in mine]) for text in ("search", "held_out", "other")),
            _shown([row["questions"] for row in mine], 0), _shown([row["seconds"] for row in mine], 0)]


def _results(rows: list[dict[str, Any]]) -> str:
    """In the order of the value on C4."""
    names = [name for name in (*MAIN, *ALLOCATORS) if _of(rows, name)]
    lines = sorted((statistics.fmean(row["values"]["other"] for row in _of(rows, name)), _line(rows, name)) for name in names)
    start = rows[0]["uniform"]
    uniform = ["uniform, where all begin", "", *(f"{start[text]:.3f}" for text in ("search", "held_out", "other")), "", ""]
    return table(["", "seeds", "search text", "held-out text", "C4", "candidates", "seconds"],
                 [*(line for _, line in lines), uniform])


def _by_when(rows: list[dict[str, Any]]) -> str:
    """The held-out value of what was best on the search text after some looks, and after some seconds."""
    def at(row: dict[str, Any], index: int, limit: float) -> float:
        known = [moment[3] for moment in row["curve"] if moment[index] <= limit]
        return float(known[-1]) if known else float(row["uniform"]["held_out"])

    marks = [(0, looks, f"{looks} looks") for looks in (10, 25, 50, 100)] + [(1, seconds, f"{seconds} s") for seconds in (15, 30, 60)]
    lines = [[name, *(_shown([at(row, index, limit) for row in _of(rows, name)], 2) for index, limit, _ in marks)]
             for name in MAIN if _of(rows, name)]
    return table(["", *(label for _, _, label in marks)], lines)


def _needs(rows: list[dict[str, Any]]) -> str:
    asked = {"PPO": "unit in the state, terminal reward, width 0.2, an eighth of the text", "REINFORCE": "per sublayer",
             "evolution": "per block", "DDPG": "scalar state, terminal reward", **{name: what for name, (what, _) in NEEDS.items()}}
    return table(["", "what differs", "seeds", "held-out text", "C4", "candidates", "seconds"],
                 [[name, what, _line(rows, name)[1], *_line(rows, name)[3:]] for name, what in sorted(asked.items()) if _of(rows, name)])


def _subjects(rows: list[dict[str, Any]]) -> str:
    lines = []
    for subject in SUBJECTS:
        for name in ("evolution", "REINFORCE"):
            if mine := _of(rows, name, subject):
                start = mine[0]["uniform"]["other"]
                lines.append([subject, name, str(len(mine)), f"{start:.3f}", _shown([row["values"]["other"] for row in mine]),
                              _shown([row["values"]["other"] / start for row in mine], 2)])
    return table(["solver and sparsity", "search", "seeds", "C4, uniform", "C4, found", "found / uniform"], lines)


def _draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Learning curves: the mean over seeds of the held-out value, by looks."""
    def draw(axes: Any) -> None:
        for name in MAIN:
            mine, spent = _of(rows, name), [step / 2 for step in range(2, 201)]
            means = [statistics.fmean(([row["uniform"]["held_out"]] + [moment[3] for moment in row["curve"] if moment[0] <= looks])[-1]
                                      for row in mine) for looks in spent]
            axes.plot(spent, means, label=name, linewidth=1.3)
        axes.set(xlabel="looks at the search text", ylabel="held-out divergence, nats per token",
                 title="What is found by when, means over seeds")

    file.parent.mkdir(exist_ok=True)
    file.write_bytes(drawn(draw))


if __name__ == "__main__":
    main()
