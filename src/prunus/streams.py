"""How far the streams behind the blocks of one model are from those of another, which reads the same tokens."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from .anatomy import describe
from .calibration.blocks import hidden_of
from .distillation import streams_apart
from .errors import RecipeError

__all__ = ["Streams"]


class Streams:
    """Of a model that learns and of one that teaches: what their blocks gave when they computed last.

    Where one has fewer blocks than the other, as a sub-network may, nobody knows which stands for which, and what the last ones give is
    compared alone. Raises RecipeError when the streams have other widths, and when a teacher's answers are all there is of it.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        if isinstance(teacher, Tensor):
            raise RecipeError("hidden: answers do not tell how a teacher comes to them. Expected the teacher itself, or hidden=0.")
        self._blocks = [[model.get_submodule(block.name) for block in describe(model).blocks] for model in (student, teacher)]
        ours, theirs = (model.config.get_text_config().hidden_size for model in (student, teacher))
        if ours != theirs:
            raise RecipeError(f"hidden: the teacher's stream is {theirs} wide and the model's {ours}, so they cannot be compared. Learn "
                              "from what it says alone (hidden=0).")
        if len(self._blocks[0]) != len(self._blocks[1]):
            self._blocks = [blocks[-1:] for blocks in self._blocks]
        self._found: list[dict[int, Tensor]] = [{}, {}]

    @contextmanager
    def heard(self) -> Iterator[None]:
        """As long as it is open, they are kept."""
        with ExitStack() as stack:
            for blocks, found in zip(self._blocks, self._found, strict=True):
                for depth, block in enumerate(blocks):
                    def keep(_: Any, __: Any, gives: Any, depth: int = depth, found: dict[int, Tensor] = found) -> None:
                        found[depth] = hidden_of(gives)

                    stack.callback(block.register_forward_hook(keep).remove)
            yield

    def apart(self, mask: Int[Tensor, "rows tokens"] | None) -> Float[Tensor, ""]:
        """How far they are from each other at tokens that are read; forgets them."""
        student, teacher = ([found.pop(depth) for depth in range(len(blocks))] for found, blocks in
                            zip(self._found, self._blocks, strict=True))
        return streams_apart(student, teacher, None if mask is None else mask.bool())
