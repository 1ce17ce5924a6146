"""How much memory does pruning take? Peak resident memory of each stage of `prunus prune` on SmolLM2 in bfloat16, by ALPS alone and with
the efforts that build on it.

Each way has a process of its own. Linux only: the kernel's high-water mark is reset at the beginning of each stage.
"""

import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _harness import ROOT, arguments, environment, keep_row, kept_rows, model_and_tokenizer, peak_memory, table, write

QUESTION = "how_much_memory_does_pruning_take"
WAYS: dict[str, Mapping[str, Any]] = {"ALPS": {"solver": "alps"}, "balanced": {"effort": "balanced"}}
BEFORE = ("interpreter", "importing torch and transformers", "loading")
PRUNING = "calibrating and solving"
PHASES = {"pruning": PRUNING, "repairing blocks": PRUNING,
          **{f"{which} model": f"measuring the {which} model" for which in ("dense", "pruned")}}


def main() -> None:
    options = arguments(__doc__ or "", ways={"nargs": "*", "default": list(WAYS), "choices": WAYS})
    with tempfile.TemporaryDirectory() as folder:
        file = (Path(folder) if options.tiny else ROOT / "build" / QUESTION) / "rows.jsonl"
        rows = kept_rows(file)
        for way in options.ways:
            if not any(row["way"] == way for row in rows):
                with ProcessPoolExecutor(1, get_context("spawn")) as apart:
                    rows.append(keep_row(file, {"way": way, **apart.submit(_row, options.tiny, way).result()}))
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        write(QUESTION, "70 %, C4, 64 sequences of 512 tokens, bfloat16", rows, {QUESTION: shown})


def _row(tiny: bool, way: str) -> dict[str, Any]:
    """Peaks by stage, and the size of the model."""
    peaks: dict[str, int] = {}
    _stage(peaks, "interpreter")
    import prunus.pipeline  # noqa: F401  the libraries are a stage of their own
    _stage(peaks, "importing torch and transformers")
    model, tokenizer = model_and_tokenizer(tiny, "bfloat16")
    _stage(peaks, "loading")
    _prune_and_save(tiny, way, model, tokenizer, peaks)
    return {"commit": environment()["commit"], "peaks": peaks,
            "checkpoint": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())}


def _prune_and_save(tiny: bool, way: str, model: Any, tokenizer: Any, peaks: dict[str, int]) -> None:
    from prunus import prune, save
    from prunus.recipe import Recipe, build

    recipe = build(Recipe, {
        "stage": [{**WAYS[way], "budget": {"limit": 0.3}}], "prompts": ["The capital of France is"],
        "calibration": {"corpus": "builtin", "samples": 4, "length": 64} if tiny else {"corpus": "c4", "samples": 64, "length": 512},
        "metrics": [{"name": "perplexity", "corpus": "builtin", "tokens": 640, "length": 64} if tiny else
                    {"name": "perplexity", "corpus": "wikitext2", "tokens": 2048}],
    }, "recipe")

    def watch(progress: Any) -> None:
        if progress.done == progress.total:
            _stage(peaks, PHASES.get(progress.phase, progress.phase))

    pruned = prune(model, recipe, tokenizer=tokenizer, watch=watch)
    _stage(peaks, "answering prompts")
    with tempfile.TemporaryDirectory() as folder:
        save(pruned, Path(folder) / "out")
    _stage(peaks, "saving")


def _stage(peaks: dict[str, int], name: str) -> None:
    """Note the peak since the last call under `name`, and begin again."""
    peak = peak_memory()
    peaks[name] = max(peak, peaks.get(name, 0))
    print(name, peak >> 20, flush=True)


def _table(rows: list[dict[str, Any]]) -> str:
    """A line for every stage, and one for the most memory that it takes to prune a model that is loaded."""
    stages = list(dict.fromkeys(stage for row in reversed(rows) for stage in row["peaks"]))
    lines = [[stage, *(cell for row in rows for cell in _shown(row, row["peaks"].get(stage)))] for stage in stages]
    most = [max(size for stage, size in row["peaks"].items() if stage not in BEFORE) for row in rows]
    lines.append(["the most, once it is loaded", *(cell for row, size in zip(rows, most, strict=True) for cell in _shown(row, size))])
    return table(["stage", *(head for row in rows for head in (f"{row['way']}, peak MiB", "x checkpoint"))], lines)


def _shown(row: dict[str, Any], size: int | None) -> tuple[str, str]:
    return ("", "") if size is None else (f"{size / 2**20:.0f}", f"{size / row['checkpoint']:.2f}")


if __name__ == "__main__":
    main()
