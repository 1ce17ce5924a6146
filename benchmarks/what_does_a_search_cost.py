"""What does a search cost? The level store's time and size, and one look at a candidate beside a whole forward pass."""

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from _harness import LEVELS, arguments, model_and_tokenizer, table, write
from prunus import Budget, Calibration, Unstructured, describe
from prunus.calibration.stream import stream
from prunus.problem import LayerProblem, LayerSolution
from prunus.search.fitness import Bounded, Fitness
from prunus.search.levels import LevelStore
from prunus.search.pruning_env import PruningEnv
from prunus.search.space import Candidate, Query, Space
from prunus.sites import LinearSite
from prunus.solvers.sparsegpt import SparseGPT

EPISODES = 2


@dataclass
class Timed:
    """SparseGPT with a stopwatch."""

    seconds: float = 0.0
    needs, supports, scope = SparseGPT.needs, SparseGPT.supports, SparseGPT.scope

    def solve(self, problem: LayerProblem) -> LayerSolution:
        start = time.perf_counter()
        solution = SparseGPT().solve(problem)
        self.seconds += time.perf_counter() - start
        return solution


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"})
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    samples, length = (4, 32) if options.tiny else (64, 512)
    text = Calibration("builtin" if options.tiny else "c4", samples=samples, length=length)
    tokens = text.tokens(tokenizer, model, 0)
    looked = Calibration("builtin" if options.tiny else "wikitext2", samples=4, length=length)
    with tempfile.TemporaryDirectory() as folder:
        row = _store(model, tokens, max(1, 1024 // length), Path(folder))
        row |= _episodes(model, looked.tokens(tokenizer, model, 1), max(1, 1024 // length), row.pop("store"))
    shown = table(["", "measured", "compared with", "ratio"], [
        ["building the level store, s", f"{row['build']:.1f}", f"{row['pass'] + row['solves']:.1f} (one pass and all solves)",
         f"{row['build'] / (row['pass'] + row['solves']):.2f}"],
        ["its size, MiB", f"{row['bytes'] / 2**20:.0f}", f"{row['dense_bytes'] / 2**20:.0f} (8 dense copies)",
         f"{row['bytes'] / row['dense_bytes']:.2f}"],
        ["one look in an episode, s", f"{row['look']:.2f}", f"{row['plain_look']:.2f} (all blocks)",
         f"{row['look'] / row['plain_look']:.2f}"],
    ])
    print(shown)
    if not options.tiny:
        write("what_does_a_search_cost", f"SparseGPT, levels {LEVELS[1:]}, C4, 64 sequences of 512 tokens; looks at WikiText-2 train, 4 "
              f"sequences of 512 tokens, {EPISODES} episodes of random moves, one per block, {options.dtype}", [row],
              {"what_does_a_search_cost": shown})


def _store(model: Any, tokens: torch.Tensor, batch: int, folder: Path) -> dict[str, Any]:
    anatomy = describe(model)
    sites = [site for site in anatomy.sites("linear") if isinstance(site, LinearSite)]
    start = time.perf_counter()
    for views in stream(model, anatomy, sites, tokens, "gram", batch=batch):
        assert views[0].stats.gram is not None
        del views
    passed = time.perf_counter() - start
    solver = Timed()
    start = time.perf_counter()
    store = LevelStore.build(folder, model, anatomy, dict.fromkeys(sites, Unstructured("matrix")), tokens, solver, LEVELS, "benchmark",
                             batch=batch)
    build = time.perf_counter() - start
    dense = sum(site.size for site in sites) * next(model.parameters()).element_size()
    return {"store": store, "pass": passed, "solves": solver.seconds, "build": build, "bytes": store.bytes, "dense_bytes": 8 * dense}


@contextmanager
def _fitness(model: Any, tokens: torch.Tensor, batch: int, store: LevelStore, prefixes: bool) -> Iterator[Fitness]:
    anatomy = describe(model)
    sites = anatomy.sites("linear")
    space = Space(sites, LEVELS, Budget(0.3))
    fitness = Fitness(model, anatomy, space, store, tokens, batch=batch)
    if not prefixes:
        fitness._states = Bounded(0)
    try:
        yield fitness
    finally:
        fitness.close()


def _episodes(model: Any, tokens: torch.Tensor, batch: int, store: LevelStore) -> dict[str, Any]:
    """The looks of some episodes of random moves, with states kept by prefix and without; values must be identical."""
    asked: list[Candidate] = []
    with _fitness(model, tokens, batch, store, prefixes=True) as fitness:
        def value(candidate: Candidate, partial: bool) -> float:
            asked.append(candidate)
            return fitness([Query(candidate, partial=partial)])[0].value

        first = fitness.space.nearest(dict.fromkeys((site.name for site in fitness.space.sites), 0.7))
        env, draw = PruningEnv(fitness.space, value, first), random.Random(0)
        start = time.perf_counter()
        for _ in range(EPISODES):
            env.reset()
            while not env.step([draw.uniform(-1, 1)])[2]:
                pass
        look = (time.perf_counter() - start) / len(asked)
        values = [fitness([Query(candidate)])[0].value for candidate in asked]
    with _fitness(model, tokens, batch, store, prefixes=False) as plain:
        some = asked[:: 1 if len(asked) < 20 else 5]
        start = time.perf_counter()
        again = [plain([Query(candidate)])[0].value for candidate in some]
        plain_look = (time.perf_counter() - start) / len(set(some))
    assert again == values[:: 1 if len(asked) < 20 else 5]
    return {"look": look, "plain_look": plain_look, "looks": len(asked)}


if __name__ == "__main__":
    main()
