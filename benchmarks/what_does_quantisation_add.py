"""What does quantisation add? SmolLM2 as it is, with half its block weights gone, and in 2:4, each in fewer and fewer bits.

Files are written by Prunus and read again before they are measured, so sizes and perplexities are of the same bytes. Finished cells
and models are kept in build/, so that an interrupted run goes on where it stopped. `--write` writes what has been measured so far.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from _harness import ROOT, WRITE, arguments, environment, keep_row, kept_rows, model_and_tokenizer, perplexities, table, write
from prunus import NM, Budget, Calibration, Recipe, Stage, Unstructured, load, prune, save
from prunus.achieved import counted, sparsity_of
from prunus.anatomy import describe
from prunus.compressed import save_compressed
from prunus.export.gguf import GGUF
from prunus.loading import Loaded, weight_files
from prunus.quantisation import Grid
from prunus.quantisers.gptq import GPTQ
from prunus.quantisers.rtn import RTN
from prunus.quantising import Plan, quantise
from prunus.solvers.sparsegpt import SparseGPT

MODELS = {"dense": None, "50 %": Unstructured(), "2:4": NM(2, 4)}
WEIGHTS = {"bfloat16": None, "int8, RTN": Plan(RTN(), Grid(8, 32)), "int4, RTN": Plan(RTN(), Grid(4, 32)),
           "int4, GPTQ": Plan(GPTQ(), Grid(4, 32)), "GGUF Q8_0": "Q8_0", "GGUF Q4_0": "Q4_0"}
TOKENS = 5120
BUILD = ROOT / "build" / "what_does_quantisation_add"


def main() -> None:
    options = arguments(__doc__ or "", write=WRITE)
    cells = [] if options.tiny else kept_rows(BUILD / "cells.jsonl")
    done = {(cell["model"], cell["weights"]) for cell in cells}
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) if options.tiny else BUILD
        for name in MODELS:
            for weights, how in WEIGHTS.items():
                if options.tiny and isinstance(how, str):
                    continue  # the tiny tokenizer has no merges, which those of llama.cpp have
                if (name, weights) not in done and not options.write:
                    cell = _cell(_model(models / name.replace(" %", "").replace(":", "-"), name, options.tiny), name, weights, options.tiny)
                    print({key: value for key, value in cell.items() if key != "protocols"}, flush=True)
                    cells.append(cell if options.tiny else keep_row(BUILD / "cells.jsonl", {**cell, "commit": environment()["commit"]}))
    shown = _table(cells)
    print(shown)
    if not options.tiny:
        write("what_does_quantisation_add", " / ".join(cells[0]["protocols"]), cells, {"what_does_quantisation_add": shown},
              calibration="c4 train, 16 sequences of 512 tokens, for pruning (SparseGPT) and for GPTQ",
              missing=[f"{name}, {weights}" for name in MODELS for weights in WEIGHTS
                       if (name, weights) not in {(cell["model"], cell["weights"]) for cell in cells}])


def _text(tiny: bool) -> Calibration:
    return Calibration("builtin", samples=4, length=64) if tiny else Calibration("c4", samples=16, length=512)


def _model(folder: Path, name: str, tiny: bool) -> Path:
    """A checkpoint in bfloat16, of the dense model or of a pruned one, made once."""
    if not (folder / "config.json").exists():
        model, tokenizer = model_and_tokenizer(tiny, "bfloat16")
        shape = MODELS[name]
        recipe = Recipe((Stage(("linear",), Budget(0.5), shape or Unstructured(), SparseGPT()),), _text(tiny), metrics=(), prompts=())
        save(prune(model, recipe, tokenizer=tokenizer) if shape else Loaded(model, tokenizer, name), folder)
    return folder


def _cell(source: Path, name: str, weights: str, tiny: bool) -> dict[str, Any]:
    """One model in one kind of numbers: the size of its files, and what the files say once they are read."""
    with tempfile.TemporaryDirectory() as folder:
        made, facts = _written(source, Path(folder), WEIGHTS[weights], tiny)
        loaded = load(made, dtype="float32")
        anatomy = describe(loaded.model)
        return {"model": name, "weights": weights, "bytes": sum(file.stat().st_size for file in weight_files(str(made))),
                "zeros": sparsity_of(counted(loaded.model, anatomy, anatomy)), **facts,
                **perplexities(loaded.model, loaded.tokenizer, tiny, TOKENS)}


def _written(source: Path, folder: Path, how: Plan | str | None, tiny: bool) -> tuple[Path, dict[str, Any]]:
    """The files of a model in one kind of numbers; seconds and the relative output error where there are such."""
    if how is None:
        return source, {}
    loaded = load(source)
    if isinstance(how, str):
        GGUF(dtype=how).save(loaded, folder / "model.gguf")  # type: ignore[arg-type]
        return folder / "model.gguf", {}
    plan = replace(how, calibration=_text(tiny), grid=replace(how.grid, group=16) if tiny else how.grid)
    found = quantise(loaded.model, plan, tokenizer=loaded.tokenizer)
    save_compressed(found, folder / "quantised")
    errors = [record.error for record in found.records if record.error is not None]
    return folder / "quantised", {"seconds": found.seconds, "error": sum(errors) / len(errors) if errors else None}


def _table(cells: list[dict[str, Any]]) -> str:
    texts = [protocol.split(" ")[0] for protocol in cells[0]["protocols"]]
    rows = []
    for cell in cells:
        plain = next(other for other in cells if (other["model"], other["weights"]) == (cell["model"], "bfloat16"))
        told = [f"{value:.2f} (× {value / before:.3f})" for value, before in zip(cell["perplexity"], plain["perplexity"], strict=True)]
        rows.append([cell["model"], cell["weights"], f"{cell['bytes'] / 2**20:.1f} MiB", f"{cell['zeros']:.1%}", *told])
    return table(["model", "weights", "files", "zeros in blocks", *(f"{text} perplexity" for text in texts)], rows)


if __name__ == "__main__":
    main()
