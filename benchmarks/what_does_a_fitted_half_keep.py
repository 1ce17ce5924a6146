"""What does a half of an encoder keep, of which no super-network was trained? MiniLM-L6, trained on a task as it is; sub-networks of it
are refitted, and looked for around a half by how far they are from it; the half learns from what it says and how it comes to that.

Every row is one task and seed; finished rows, and halves before they learn, are kept in build/, so that an interrupted benchmark goes on
where it stopped.
"""

import copy
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from _harness import GO_ON, ROOT, WRITE, arguments, environment, keep_row, kept_rows, table, write
from prunus.calibration.tasks import Labelled, Task, encoded
from prunus.finetune import Training, train_supernet
from prunus.front import FrontSearch
from prunus.frontier import find_front, fits_of, genome_of
from prunus.ordering import orders_of
from prunus.predictions import score
from prunus.search.searchers.exchange import Exchange
from prunus.search.spaces.medium import Medium
from prunus.supernet.distilled import Distilled
from prunus.supernet.standard import Standard
from what_does_a_front_bring import TASKS, counted, encoder_of, spread, tiny_task

QUESTION = "what_does_a_fitted_half_keep"
HALF = ["params<=0.5"]
FIRST = Training(epochs=3, batch=16, rate=5e-5, warmup=0.1)
THEN, TAUGHT = replace(FIRST, epochs=6, rate=1e-4, dropout=False), Distilled(temperature=4.0, hidden=10.0, noise=0.15)
PLAN = FrontSearch(space=Medium(steps=12), order="fisher", refit=True, objectives=("divergence", "error", "params"),
                   searcher=Exchange(least=0.4, most=0.5), evaluations=60, task=Task("glue_cola"))


def main() -> None:
    options = arguments(__doc__ or "", go_on=GO_ON, write=WRITE, seeds={"type": int, "nargs": "*", "default": list(range(5))},
                        tasks={"nargs": "*", "default": [name for name in TASKS if name != "glue_rte"]})
    with tempfile.TemporaryDirectory() as folder:
        file = (Path(folder) if options.tiny else ROOT / "build" / QUESTION) / "rows.jsonl"
        rows = kept_rows(file, QUESTION if options.go_on else "")
        tasks = [tiny_task(Path(folder))] if options.tiny else [Task(name, rows=TASKS[name]) for name in options.tasks]
        for seed in [0] if options.tiny else options.seeds:
            for task in tasks:
                key = (Path(task.corpus).stem, seed)
                if not options.write and not any((row["task"], row["seed"]) == key for row in rows):
                    half = file.with_name(f"{key[0]}-{seed}.pt")
                    rows.append(keep_row(file, {"task": key[0], "seed": seed, **_row(options.tiny, replace(task, seed=seed), half)}))
                    print(rows[-1], flush=True)
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        protocol = (f"MiniLM-L6, first {FIRST}; {PLAN}; then {TAUGHT}, {THEN}; all of a row's seed; rows of training files {TASKS}; 70/30 "
                    "by seed, official validation file as test; seconds of a processor, one thread")
        write(QUESTION, protocol, rows, {QUESTION: shown})


def _row(tiny: bool, task: Task, kept: Path) -> dict[str, Any]:
    """The metric of the dense model, of the half that is found, and of the half that was trained on; and seconds."""
    read = task.read()
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_half(tiny, read), draft := kept.with_suffix(".part"))
        draft.rename(kept)
    half, teacher, tokenizer, row = torch.load(kept, weights_only=False)
    examples, unseen = (encoded(read, split, half, tokenizer) for split in ("train", "test"))
    with counted(row["seconds"], "learning"):
        train_supernet(half, None, TAUGHT, examples, replace(THEN, seed=task.seed, steps=2 if tiny else 0), teacher=teacher)
    return {"commit": environment()["commit"], "metric": read.metric, **row, "taught": score(half, unseen).value}


def _half(tiny: bool, read: Labelled) -> tuple[Any, Any, Any, dict[str, Any]]:
    """That is found, the dense model, the tokenizer, and what is known of them."""
    seed = read.task.seed
    plan = replace(PLAN, task=read.task, seed=seed, evaluations=12 if tiny else PLAN.evaluations)
    model, tokenizer = encoder_of(tiny, read, seed)
    examples, unseen = (encoded(read, split, model, tokenizer) for split in ("train", "test"))
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:
        with counted(seconds, "training"):
            train_supernet(model, None, Standard(), examples, replace(FIRST, seed=seed, steps=2 if tiny else 0))
        teacher, dense = copy.deepcopy(model), score(model, unseen).value
        with counted(seconds, "search"):
            orders = orders_of(model, tokenizer, plan, read)
            front = find_front(model, tokenizer, plan, orders=orders, folder=Path(home))
        picked = front.pick(HALF)
        genome_of(model, plan.space, orders, fits=fits_of(model, plan, Path(home))).extract(model, picked.candidate)
    return model, teacher, tokenizer, {"dense": dense, "found": score(model, unseen).value, "weights": picked.values[-1],
                                       "candidate": picked.candidate, "seconds": seconds}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        ours = [row for row in rows if row["task"] == task]
        kept = [spread([row[which] / row["dense"] for row in ours]) for which in ("found", "taught")]
        seconds = [f"{statistics.mean(row['seconds'][part] for row in ours):.0f}" for part in ("training", "search", "learning")]
        metric, weights = (spread([row[which] for row in ours]) for which in ("dense", "weights"))
        lines.append([task, str(len(ours)), metric, weights, *kept, *seconds])
    head = ("task", "seeds", "dense", "weights of the half", "it keeps", "trained on", *(f"seconds of {part}" for part in (
        "the dense model's training", "the search", "the half's training")))
    return table(list(head), lines)


if __name__ == "__main__":
    main()
