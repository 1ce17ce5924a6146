"""How much memory does pruning take? Peak resident memory of each stage of `prunus prune` on SmolLM2 in float32.

Linux only: the kernel's high-water mark is reset at the beginning of each stage.
"""

import tempfile
from pathlib import Path

from _harness import arguments, model_and_tokenizer, peak_memory, table, write


def main() -> None:
    options = arguments(__doc__ or "")
    peaks: dict[str, int] = {}
    _stage(peaks, "")
    _stage(peaks, "interpreter")
    import prunus.pipeline  # noqa: F401  the libraries are a stage of their own
    _stage(peaks, "importing torch and transformers")
    model, tokenizer = model_and_tokenizer(options.tiny)
    _stage(peaks, "loading")
    _prune_and_save(options.tiny, model, tokenizer, peaks)
    checkpoint = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    rows = [{"stage": name, "peak_bytes": peak, "of_checkpoint": peak / checkpoint} for name, peak in peaks.items()]
    shown = table(["stage", "peak MiB", "x checkpoint"],
                  [[str(row["stage"]), f"{peaks[str(row['stage'])] / 2**20:.0f}", f"{row['of_checkpoint']:.2f}"] for row in rows])
    print(shown)
    if not options.tiny:
        write("how_much_memory_does_pruning_take", "ALPS at 70 %, C4, 64 sequences of 512 tokens, float32", rows,
              {"how_much_memory_does_pruning_take": shown}, checkpoint_bytes=checkpoint)


def _prune_and_save(tiny: bool, model: object, tokenizer: object, peaks: dict[str, int]) -> None:
    from prunus import Budget, Calibration, Recipe, Stage, prune, save
    from prunus.evaluation.perplexity import Perplexity
    from prunus.pipeline import Progress
    from prunus.solvers.alps import ALPS

    text = Calibration("builtin", samples=4, length=64) if tiny else Calibration("c4", samples=64, length=512)
    metric = Perplexity("builtin", tokens=640, length=64) if tiny else Perplexity("wikitext2", tokens=2048)

    def watch(progress: Progress) -> None:
        if progress.done == progress.total:
            _stage(peaks, {"pruning": "calibrating and solving"}.get(progress.phase, f"measuring the {progress.phase}"))

    recipe = Recipe((Stage(budget=Budget(0.3), solver=ALPS()),), text, (metric,), prompts=("The capital of France is",))
    pruned = prune(model, recipe, tokenizer=tokenizer, watch=watch)  # type: ignore[arg-type]
    _stage(peaks, "answering prompts")
    with tempfile.TemporaryDirectory() as folder:
        save(pruned, Path(folder) / "out")
    _stage(peaks, "saving")


def _stage(peaks: dict[str, int], name: str) -> None:
    """Note the peak since the last call under `name`, and begin again."""
    peak = peak_memory()
    if name:
        peaks[name] = max(peak, peaks.get(name, 0))
        print(name, peak >> 20, flush=True)


if __name__ == "__main__":
    main()
