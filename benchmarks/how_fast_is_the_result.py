"""How fast is a model with a quarter of its block weights gone? SmolLM2 without branches, and without channels, beside the dense
one, all in turn: in PyTorch and in llama.cpp. Which branches and channels go changes nothing here, so they are chosen in one pass.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from _harness import arguments, model_and_tokenizer, table, write
from prunus import Budget, Calibration, Recipe, Stage, prune
from prunus.allocation.influence import Influence
from prunus.criteria.magnitude import Magnitude
from prunus.export.gguf import GGUF
from prunus.loading import Loaded
from prunus.solvers.mask import Mask
from prunus.speed import in_llama_cpp, in_pytorch, ratio
from prunus.traits import parameters_of

STAGES = {
    "without branches": Stage(("sublayer",), Budget(0.75), allocation=Influence()),
    "without blocks": Stage(("sublayer",), Budget(0.75), allocation=Influence(per="block")),
    "without MLP channels": Stage(("channel",), Budget(0.6667), solver=Mask(Magnitude()), skip=("*attn*",), multiple=32),
}


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "float32"}, threads={"type": int, "default": 1})
    torch.set_num_threads(options.threads)
    repetitions = 1 if options.tiny else 9
    models: dict[str, Loaded] = {}
    for name, stage in {"dense": None, **STAGES}.items():
        model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
        if stage:
            text = Calibration("builtin", samples=8, length=32 if options.tiny else 256)
            prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer)
        models[name] = Loaded(model, tokenizer, name)
    size = {"prompt": 16, "answer": 4} if options.tiny else {"prompt": 256, "answer": 48}
    found = {f"PyTorch, {options.dtype}": in_pytorch([loaded.model for loaded in models.values()], repetitions=repetitions, **size)}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in () if options.tiny else ("F16", "Q8_0"):
            files = [Path(folder) / f"{name}-{dtype}.gguf" for name in models]
            for loaded, file in zip(models.values(), files, strict=True):
                GGUF(dtype=dtype).save(loaded, file)  # type: ignore[arg-type]
            found[f"llama.cpp, {dtype}"] = in_llama_cpp(files, repetitions=repetitions, threads=options.threads, **size)
    rows = [{"runtime": runtime, "model": name, "parameters": parameters_of(loaded.model), "bytes": speed.bytes,
             "prefill": speed.prefill, "decode": speed.decode}
            for runtime, speeds in found.items() for (name, loaded), speed in zip(models.items(), speeds, strict=True)]
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        protocol = (f"{size['prompt']} tokens read, {size['answer']} written, one sequence; {repetitions} rounds in turn after one that "
                    f"warms up; {options.threads} thread(s); medians, and in brackets the least and the most of the rounds' ratios to the "
                    "dense model")
        write("how_fast_is_the_result", protocol, rows, {"how_fast_is_the_result": shown})


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        dense = next(other for other in rows if other["runtime"] == row["runtime"])
        cells = [f"{statistics.median(row[key]):.1f}, {middle:.2f} [{low:.2f}, {high:.2f}]"
                 for key in ("prefill", "decode") for middle, low, high in [ratio(dense[key], row[key])]]
        lines.append([row["runtime"], row["model"], f"{row['parameters'] / 1e6:.1f} M, {row['parameters'] / dense['parameters']:.3f}",
                      f"{row['bytes'] / 2**20:.1f} MiB, {row['bytes'] / dense['bytes']:.3f}", *cells])
    return table(["runtime", "model", "parameters", "size", "tokens read / s", "tokens written / s"], lines)


if __name__ == "__main__":
    main()
