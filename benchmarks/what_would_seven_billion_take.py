"""What would seven billion parameters take? Seconds and memory of every structural method for the shape of LLaMA-2-7B, from work
counted by formula and the rates that Llamas of random weights reach here; SmolLM2 is the check.

Work is counted apart for what passes text through blocks and for what solves matrices, as their rates differ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from _harness import arguments, model_and_tokenizer, table, write
from prunus import Budget, Calibration, Recipe, Stage, prune
from prunus.allocation.influence import Influence
from prunus.criteria.flap import FLAP
from prunus.criteria.obs import OBS
from prunus.recovery.patch import Patch
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT
from prunus.solvers.subset import Subset

SPARSITY = 0.2


@dataclass(frozen=True)
class Shape:
    """A Llama, and the text that it is pruned with."""

    width: int  # d
    inner: int  # f, of the MLP
    blocks: int  # L
    grouped: int  # width of keys and values
    vocabulary: int
    samples: int
    length: int  # S

    @property
    def tokens(self) -> int:  # T
        return self.samples * self.length

    @property
    def weights(self) -> int:
        """Of one block."""
        return 2 * self.width * (self.width + self.grouped) + 3 * self.width * self.inner

    @property
    def passing(self) -> float:
        """Multiplications and additions of all tokens through all blocks."""
        return self.blocks * self.tokens * (2 * self.weights + 4 * self.length * self.width)

    @property
    def moments(self) -> float:
        """Of the Grams of what leaves attention and what leaves the MLP, above the diagonal."""
        return self.blocks * self.tokens * (self.width**2 + self.inner**2)

    def solving(self, work: Callable[[int, float, int], float]) -> float:
        """Of the two matrices in which channels go: `work` of n inputs, g that go, m outputs."""
        return self.blocks * sum(work(inputs, SPARSITY * inputs, self.width) for inputs in (self.width, self.inner))


@dataclass(frozen=True)
class Method:
    """A stage, and its work."""

    stage: Callable[[int], Stage]  # of a model with so many blocks
    passing: Callable[[Shape], float]
    passing_text: str
    solving: Callable[[int, float, int], float] | None  # n inputs, g that go, m outputs
    solving_text: str
    memory: Callable[[Shape], float]  # beside the weights of the model, bytes
    memory_text: str


def _channels(solver: Any) -> Callable[[int], Stage]:
    return lambda blocks: Stage(("channel",), Budget(1 - SPARSITY), solver=solver)


def _branches(recovery: Patch | None = None) -> Callable[[int], Stage]:
    """A fifth of the blocks goes, evenly from two fifths of the depth on, whatever a model of random weights would choose."""

    def stage(blocks: int) -> Stage:
        first, count = 2 * blocks // 5, blocks // 5
        free = {first + (blocks - first) * index // count for index in range(count)}
        skip = tuple(f"model.layers.{block}.*" for block in range(blocks) if block not in free)
        return Stage(("sublayer",), Budget(0.5 / count), skip=skip, allocation=Influence(per="block"), recovery=recovery)

    return stage


def _hidden(shape: Shape) -> float:
    return 2.0 * shape.tokens * shape.width  # bfloat16


def _gram(shape: Shape) -> float:
    return _hidden(shape) + 4.0 * shape.inner**2


INVERSE = "n^3 + 2 n^3"
METHODS = {
    "influence (ShortGPT, LLM-Drop)": Method(
        _branches(), lambda shape: shape.passing, "P", None, "", _hidden, "2 T d"),
    "least-squares repair": Method(
        _branches(Patch()),
        lambda shape: 0.6 * (5 * shape.passing + shape.moments + 2 * shape.blocks * shape.tokens * shape.width
                             * (shape.width + shape.inner)),
        "0.6 (5 P + M + 2 L T d (d + f)), from the first cut on", None, "",
        lambda shape: 4 * _hidden(shape) + 12.0 * shape.inner**2, "8 T d + 12 f^2"),
    "FLAP, Wanda, magnitude": Method(
        _channels(Mask(FLAP())), lambda shape: shape.passing, "P", None, "", _hidden, "2 T d"),
    "OBS, refitted": Method(
        _channels(Refit(OBS())), lambda shape: shape.passing + shape.moments, "P + M",
        lambda n, g, m: n**3 + (n - g) ** 3 / 3 + 2 * (n - g) * (2 * n - g) * m, "n^3 + (n-g)^3 / 3 + 2 (n-g) (2n-g) m",
        lambda shape: _gram(shape) + 8.0 * (shape.inner**2 + 2 * shape.inner * shape.width), "2 T d + 4 f^2 + 8 (f^2 + 2 f d)"),
    "grouped OBS in 64 rounds (sparsegpt)": Method(
        _channels(SparseGPT()), lambda shape: shape.passing + shape.moments, "P + M",
        lambda n, g, m: 3 * n**3 + 2 * g * n * (n + m) + 64 * 2 * n * m, f"{INVERSE} + 2 g n (n + m) + 128 n m",
        lambda shape: _gram(shape) + 8.0 * (2 * shape.inner**2 + shape.inner * shape.width), "2 T d + 4 f^2 + 8 (2 f^2 + f d)"),
    "column-subset selection (subset)": Method(
        _channels(Subset(swaps=0)), lambda shape: shape.passing + shape.moments, "P + M",
        lambda n, g, m: 3 * n**3 + 2 * g * n * (n + 2 * m), f"{INVERSE} + 2 g n (n + 2 m)",
        lambda shape: _gram(shape) + 8.0 * (2 * shape.inner**2 + 2 * shape.inner * shape.width), "2 T d + 4 f^2 + 16 (f^2 + f d)"),
}
SEVEN = Shape(4096, 11008, 32, 4096, 32000, 128, 512)
SMALL = Shape(576, 1536, 30, 192, 49152, 16, 512)
WIDTHS = {512: 24, 1024: 12, 1536: 8}  # samples, as a rate wants seconds


def main() -> None:
    options = arguments(__doc__ or "", only={"nargs": "*", "default": [], "help": "names of methods"})
    shapes = [Shape(64, 172, 5, 64, 256, 4, 32)] if options.tiny else [
        Shape(width, 43 * width // 16, 5, width, 256, samples, 512) for width, samples in WIDTHS.items()]
    rows = []
    for name, method in METHODS.items():
        if not options.only or name in options.only:
            rows.append(_row(name, method, shapes, options.tiny))
            print(rows[-1], flush=True)
    shown = table(["method", "work of passing", "of solving one matrix", "billions a second, passing", "solving", "SmolLM2, predicted",
                   "measured", "7B, this machine", "memory beside the weights", "7B"], [_cells(row) for row in rows])
    print(shown)
    if not options.tiny and not options.only:
        write("what_would_seven_billion_take", "seconds of one run each, bfloat16", rows, {"what_would_seven_billion_take": shown},
              widths=list(WIDTHS), seven=vars(SEVEN))


def _row(name: str, method: Method, shapes: list[Shape], tiny: bool) -> dict[str, Any]:
    """Rates at every width; what the nearest of them says of SmolLM2 and of seven billion; and what SmolLM2 took."""
    _, letters = model_and_tokenizer(tiny=True)
    measured = [_seconds(method.stage(shape.blocks), _llama(shape), letters,
                         Calibration("builtin", samples=shape.samples, length=shape.length)) for shape in shapes]
    passing = [method.passing(shape) / seconds[0] / 1e9 for shape, seconds in zip(shapes, measured, strict=True)]
    solving = [shape.solving(method.solving) / seconds[1] / 1e9 if method.solving else None
               for shape, seconds in zip(shapes, measured, strict=True)]

    def predicted(shape: Shape) -> float:
        near = min(range(len(shapes)), key=lambda index: abs(shapes[index].width - shape.width))
        solved = shape.solving(method.solving) / (solving[near] or math.inf) if method.solving else 0
        return (method.passing(shape) / passing[near] + solved) / 1e9

    whole = sum(measured[-1]) if tiny else sum(_seconds(method.stage(SMALL.blocks), *model_and_tokenizer(False, "bfloat16"), Calibration(
        "c4", samples=SMALL.samples, length=SMALL.length)))
    return {"method": name, "passing": passing, "solving": solving, "small_predicted": predicted(SMALL), "small_measured": whole,
            "seven": predicted(SEVEN), "memory": method.memory(SEVEN)}


def _llama(shape: Shape) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=shape.width, intermediate_size=shape.inner, num_hidden_layers=shape.blocks,
                         num_attention_heads=shape.width // 32, vocab_size=shape.vocabulary, max_position_embeddings=shape.length)
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def _seconds(stage: Stage, model: Any, tokenizer: Any, text: Calibration) -> tuple[float, float]:
    """Of what passes text, and of what solves."""
    seconds = prune(model, Recipe((stage,), text, metrics=(), prompts=()), tokenizer=tokenizer).report.seconds
    solving = seconds.get("solving", 0.0)
    return (seconds["pruning"] - solving if stage.recovery or stage.sites == ("channel",) else seconds["allocating"]), solving


def _cells(row: dict[str, Any]) -> list[str]:
    method = METHODS[row["method"]]
    return [row["method"], method.passing_text, method.solving_text, f"{row['passing'][-1]:.0f}",
            f"{row['solving'][-1]:.1f}" if row["solving"][-1] else "", f"{row['small_predicted']:.0f} s", f"{row['small_measured']:.0f} s",
            f"{row['seven'] / 60:.0f} min", method.memory_text, f"{row['memory'] / 2**30:.1f} GiB"]


if __name__ == "__main__":
    main()
