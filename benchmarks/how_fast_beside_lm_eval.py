"""How fast are tasks beside lm-eval? The first examples of PIQA and ARC-easy put to SmolLM2 by `prunus evaluate --tasks`, and by
lm-evaluation-harness's own loop with its own model class, one text at a time and eight together, one after the other in one process.

Both open the same local documents and count that; what differs is how the model is asked. Right answers must be the same, one by one.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from _harness import Timer, arguments, model_and_tokenizer, table, write

TASKS = ("piqa", "arc_easy")


def main() -> None:
    options = arguments(__doc__ or "", limit={"type": int, "default": 50}, threads={"type": int, "default": 1})
    torch.set_num_threads(options.threads)
    model, tokenizer = model_and_tokenizer(options.tiny)
    with tempfile.TemporaryDirectory() as folder:
        if options.tiny:
            _documents(Path(folder))
        rows = _rows(model, tokenizer, 4 if options.tiny else options.limit)
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        protocol = (f"SmolLM2-135M-Instruct, float32, {options.threads} thread(s); the first {options.limit} examples of each task, no "
                    "shots; processor seconds, opening the documents included, on a machine that did other work meanwhile")
        write("how_fast_beside_lm_eval", protocol, rows, {"how_fast_beside_lm_eval": shown})


def _documents(folder: Path) -> None:
    from tests.asked import rows_of, written

    written(folder / "piqa", validation=rows_of("piqa"))
    written(folder / "arc_easy", test=rows_of("arc_easy"))
    os.environ["PRUNUS_DATA"] = str(folder)


def _rows(model: Any, tokenizer: Any, limit: int) -> list[dict[str, Any]]:
    """Every task in every way, each once after one example that warms up."""
    ways: dict[str, Callable[[str, int], list[bool]]] = {
        "lm-eval, one at a time": lambda task, count: _theirs(model, tokenizer, task, count, 1),
        "lm-eval, 8 together": lambda task, count: _theirs(model, tokenizer, task, count, 8),
        "Prunus": lambda task, count: _ours(model, tokenizer, task, count)}
    rows = []
    for task in TASKS:
        for run in ways.values():
            run(task, 1)
        for name, run in ways.items():
            with Timer() as timer:
                right = run(task, limit)
            rows.append({"task": task, "way": name, "cpu": timer.cpu, "wall": timer.wall, "right": sum(right),
                         "of": len(right), "examples": right})
            print(task, name, f"{timer.cpu:.1f} s, {sum(right)} of {len(right)}", flush=True)
    return rows


def _theirs(model: Any, tokenizer: Any, task: str, limit: int, batch: int) -> list[bool]:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from prunus.harness.catalogue import opened, quiet

    with quiet():
        (one,) = opened(task, None, 1234, "off")
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        found: Any = evaluate(lm=harness, task_dict={task: one.tasks[0]}, limit=limit, bootstrap_iters=0, log_samples=True)
    return [bool(sample["acc_norm"]) for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"])]


def _ours(model: Any, tokenizer: Any, task: str, limit: int) -> list[bool]:
    from prunus.evaluation import Context
    from prunus.evaluation.tasks import Tasks

    (found,) = Tasks((task,), limit, metrics=("acc_norm",)).measure(model, Context(tokenizer))
    return [bool(part) for part in found.parts]


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for task in TASKS:
        one, eight, ours = (row for row in rows if row["task"] == task)
        same = ["the same" if other["examples"] == ours["examples"] else f"{other['right']} of {other['of']}" for other in (one, eight)]
        lines.append([task, f"{one['cpu']:.1f}", f"{eight['cpu']:.1f}", f"{ours['cpu']:.1f}", f"{ours['cpu'] / one['cpu']:.2f}",
                      f"{ours['cpu'] / eight['cpu']:.2f}", f"{ours['right']} of {ours['of']}", *same])
    return table(["task", "lm-eval, one at a time, s", "lm-eval, 8 together, s", "Prunus, s", "ratio to one", "ratio to 8", "right, Prunus",
                  "one at a time", "8 together"], lines)


if __name__ == "__main__":
    main()
