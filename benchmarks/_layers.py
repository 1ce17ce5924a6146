"""The matrices of a model and the Grams of their inputs, for benchmarks that compare solvers on equal problems."""

from collections.abc import Iterator
from typing import Any

from prunus import Calibration, describe
from prunus.calibration.stream import View, stream
from prunus.sites import LinearSite

__all__ = ["BLOCKS", "View", "layers"]

BLOCKS = (0, 3, 7, 11, 15, 18, 22, 26, 29)  # of the 30 of SmolLM2; 11 has massive activations


def layers(model: Any, tokenizer: Any, samples: int, length: int, blocks: tuple[int, ...] | None,
           tiny: bool) -> Iterator[list[View]]:
    """Views of the dense model's matrices, block by block; nothing is pruned in between."""
    text = Calibration("builtin" if tiny else "c4", samples=samples, length=length)
    anatomy = describe(model)
    chosen = [site for site in anatomy.sites("linear")
              if isinstance(site, LinearSite) and (tiny or blocks is None or site.block in blocks)]
    yield from stream(model, anatomy, chosen, text.tokens(tokenizer, model, 0), "gram")
