"""How fast is bfloat16? The first blocks of SmolLM2 with its head, on 512 tokens: forward, and forward and backward, in bfloat16 as PyTorch
multiplies on this processor, in bfloat16 as Prunus has it multiplied, and in float32.

On a processor with instructions for bfloat16 the first two are the same.
"""

import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch

from _harness import arguments, model_and_tokenizer, table, write
from prunus.traits import uncached
from prunus.widening import widened

BLOCKS = 6
WAYS: dict[str, tuple[str, Any]] = {"bfloat16, PyTorch": ("bfloat16", nullcontext), "bfloat16, Prunus": ("bfloat16", widened),
                                    "float32": ("float32", nullcontext)}


def main() -> None:
    options = arguments(__doc__ or "")
    models = {dtype: _model(options.tiny, dtype) for dtype in dict.fromkeys(dtype for dtype, _ in WAYS.values())}
    tokens = torch.randint(0, 200, (1, 32 if options.tiny else 512), generator=torch.Generator().manual_seed(0))
    rows = [{"way": way, "round": turn, **_seconds(models[dtype], tokens, context)}
            for turn in range(1 if options.tiny else 3) for way, (dtype, context) in WAYS.items()]
    lines = []
    for way in WAYS:
        forward, both = (statistics.median(row[name] for row in rows if row["way"] == way) for name in ("forward", "both"))
        lines.append([way, f"{forward:.2f}", f"{both:.2f}"])
    shown = table(["", "forward, s", "forward and backward, s"], lines)
    print(shown)
    if not options.tiny:
        write("how_fast_is_bfloat16", f"SmolLM2's first {BLOCKS} blocks and its head, 512 tokens, medians of 3 rounds in turn; "
              f"PyTorch says of the processor: {torch.backends.cpu.get_cpu_capability()}", rows, {"how_fast_is_bfloat16": shown})


def _model(tiny: bool, dtype: str) -> Any:
    model, _ = model_and_tokenizer(tiny, dtype)
    model.model.layers = model.model.layers[:BLOCKS]
    return model.to(getattr(torch, dtype))


def _seconds(model: Any, tokens: torch.Tensor, context: Any) -> dict[str, float]:
    start = time.perf_counter()
    with context(), torch.no_grad():
        model(input_ids=tokens, **uncached(model))
    middle = time.perf_counter()
    with context():
        model(input_ids=tokens, **uncached(model)).logits.float().square().mean().backward()
    end = time.perf_counter()
    model.zero_grad()
    return {"forward": middle - start, "both": end - middle}


if __name__ == "__main__":
    main()
