"""A step of training for all blocks, with one of them at a time in the memory that training takes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..silence import silenced
from ..sites import Anatomy, Block, SublayerSite
from .blocks import States
from .placement import Placement
from .teaching import precise

__all__ = ["Backwards"]


@dataclass(frozen=True)
class Backwards:
    """The blocks of a model without the branches that are gone, forwards and backwards.

    Of a pass forwards only what every block is given stays. On the way back every block computes once more, and its weights are changed
    as soon as their gradient is known (as in Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited
    Resources"), so that neither the gradients nor float32 copies of the whole model are ever there.
    """

    model: Any
    anatomy: Anatomy
    gone: Sequence[SublayerSite]
    states: States  # at the entry of the first block
    placement: Placement
    generator: torch.Generator  # which way weights in half precision are rounded

    def forward(self, rows: slice) -> list[Float[Tensor, "rows length width"]]:
        """What every block is given, and what the last one gives."""
        found = [self.states.hidden[rows].to(self.states.device)]
        for depth, block in enumerate(self.anatomy.blocks):
            with self._without(block) as module:
                found.append(self.states.call(module, depth, found[-1]))
        return found

    def backward(self, given: list[Tensor], slope: Float[Tensor, "rows length width"], trained: Sequence[Sequence[nn.Parameter]],
                 change: Callable[[int], None]) -> None:
        """`change` is called for every block, from the last one on, once its `trained` parameters are in float32 with their gradients.
        `given`, from `forward`, is used up; `slope` is that of the loss behind the last block."""
        given.pop()
        mixed = slope.dtype in (torch.bfloat16, torch.float16)
        for depth, block in reversed(list(enumerate(self.anatomy.blocks))):
            inputs = given.pop().requires_grad_(depth > 0)
            with self._without(block) as module, precise(module, trained[depth], self._drawn):
                with torch.enable_grad(), torch.autocast(self.states.device.type, dtype=torch.bfloat16, enabled=mixed):
                    outputs = self.states.call(module, depth, inputs)
                if outputs.requires_grad:
                    outputs.backward(slope.to(outputs))
                    change(depth)
            if inputs.grad is not None:
                slope = inputs.grad

    @contextmanager
    def _without(self, block: Block) -> Iterator[nn.Module]:
        module: nn.Module = self.model.get_submodule(block.name)
        with self.placement.visiting(module), silenced(self.model, [branch for branch in block.branches if branch in self.gone]):
            yield module

    def _drawn(self, values: Float[Tensor, "..."], dtype: torch.dtype) -> Tensor:
        """Float32 rounded to one of the two numbers around, the nearer the likelier: steps of less than half a unit add up. 0 stays 0."""
        bits = round(math.log2(torch.finfo(dtype).eps / torch.finfo(torch.float32).eps))
        if bits <= 0:
            return values.to(dtype)
        noise = torch.randint(1 << bits, values.shape, dtype=torch.int32, generator=self.generator, device=self.generator.device)
        return (noise.to(values.device).add_(values.view(torch.int32)) & -(1 << bits)).view(torch.float32).to(dtype)
