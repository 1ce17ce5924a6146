"""Masks that are chosen again while what they keep is trained."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..granularity import NM, Unstructured, exchanged
from ..stats import InputStats
from ..traits import module_layout

__all__ = ["Masked", "Reselection", "reselection_of"]

_SPAN = 0.75  # of the steps, in which masks are chosen again; what comes back has the others to settle


@dataclass(frozen=True)
class Masked:
    """What a matrix was before single weights of it went, and the shape in which they went."""

    dense: Tensor  # in the layout of its module
    granularity: Unstructured | NM


@dataclass(frozen=True)
class Candidate:
    """A matrix whose mask is chosen again, and what every weight would be if it came back.

    In `values` a weight that is kept is what it was when the mask was last chosen; one that is not starts from what it was in the dense
    model, and takes the steps that its gradient asks for though it is not there (straight-through; Zhou et al. 2021).
    """

    module: Any
    masked: Masked
    scale: Float[Tensor, "in"]  # root mean squares of what the matrix reads
    values: Tensor  # in the layout of the module, as is all that is said of the weight

    @property
    def weight(self) -> nn.Parameter:
        parameter: nn.Parameter = self.module.weight
        return parameter

    def step(self, kept: Bool[Tensor, "..."]) -> None:
        """What is not kept takes the step that the optimiser has just given it."""
        self.values.add_(self.weight * ~kept)

    def choose(self, kept: Bool[Tensor, "..."], share: float) -> Bool[Tensor, "..."]:
        """A mask in which at most a share of what is kept gave way to what moves the output more: |w| times the scale of its input, the
        saliency of Wanda (Sun et al. 2024). What was zero in the dense model stays zero."""
        self.values.copy_(torch.where(kept, self.weight, self.values))
        saliency = module_layout(self.module, (self.values * (kept | (self.masked.dense.to(kept.device) != 0))).abs()) * self.scale
        found = exchanged(saliency, module_layout(self.module, kept), self.masked.granularity, share)
        return module_layout(self.module, found).contiguous()


@dataclass(frozen=True)
class Reselection:
    """Which masks are chosen again, and how often."""

    candidates: Sequence[Candidate]
    times: int

    def moments(self, steps: int) -> frozenset[int]:
        """Before which of so many steps: evenly spaced over the first three quarters."""
        return frozenset(round(_SPAN * steps * (index + 0.5) / self.times) for index in range(self.times))


def reselection_of(masked: Mapping[Any, Masked], times: int, run: Callable[[], None]) -> Reselection:
    """Of some modules; `run` lets them read all calibration text."""
    found: dict[Any, InputStats] = {}
    with ExitStack() as stack:
        for module, matrix in masked.items():
            found[module] = InputStats(module_layout(module, matrix.dense).shape[1], "power", module.weight.device)
            handle = module.register_forward_pre_hook(lambda module, given: found[module].update(given[0].detach()))
            stack.callback(handle.remove)
        run()
    return Reselection([Candidate(module, matrix, found[module].rms(), matrix.dense.to(module.weight, copy=True))
                        for module, matrix in masked.items()], times)
