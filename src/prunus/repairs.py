"""A stage's recovery at work: block by block as they are pruned, or once all of them are."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .calibration.blocks import States, evaluating, frozen
from .calibration.pair import Dense, Watch
from .calibration.placement import Placement
from .calibration.reselection import Masked
from .calibration.stream import Beside, Leaving
from .calibration.teaching import in_small_steps
from .environment import Clock
from .granularity import NM, Granularity, Unstructured
from .recovery import BlockRecovery, Concluding, Recovery, reselects
from .sites import Anatomy, LinearSite, SublayerSite

__all__ = ["Repairs"]


@dataclass
class Repairs:
    """What it works on; and what it had to say."""

    model: Any
    anatomy: Anatomy
    tokens: Int[Tensor, "samples length"]
    placement: Placement
    batch: int  # sequences that pass through a block together
    clock: Clock
    watch: Watch
    remarks: list[str] = field(default_factory=list)

    def afterwards(self, recovery: Recovery, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor]) -> None:
        """Repair the whole model; `gone` and `dense` are those of `Recovery.recover`."""
        with self.clock.apart("repairing"):
            self.remarks += recovery.recover(self.model, self.anatomy, gone, dense, self.tokens, self.placement, self.batch, self.watch)

    def in_turn(self, recovery: BlockRecovery, plan: Mapping[LinearSite, Granularity], done: Collection[int],
                finish: Callable[[int], None], whole: Recovery | None, stack: ExitStack) -> Leaving:
        """Begin, while the model is dense; gives what `stream` is to call when it leaves a block, which calls `finish` in the end. The
        blocks with matrices of the `plan` are pruned, of which those that are `done` are what they were after their repair. Behind the
        last of them the `whole` recovery concludes, if that is what it does. Raises CalibrationError like a recovery."""
        depths = {site.block for site in plan}
        masked: dict[str, Masked] = {}  # of the block that is pruned next

        def remember(depth: int) -> None:
            masked.clear()
            for site, shape in plan.items() if reselects(recovery) else ():
                if site.block == depth and isinstance(shape, NM | Unstructured):
                    masked[site.name] = Masked(self.model.get_submodule(site.name).weight.detach().clone(), shape)

        with self.clock.apart("repairing"), torch.no_grad(), evaluating(self.model):
            dense = Dense(self.model, self.anatomy, self.tokens, self.placement, self.together, recovery.branches, stack)
            dense.through(0)
        remember(0)
        order, last = sorted(depths), max(depths, default=-1)

        def leaving(depth: int, pruned: States, beside: Beside | None) -> None:
            with self.clock.apart("repairing"):
                if depth in depths:
                    if depth not in done:
                        with frozen(self.model):
                            self.remarks += recovery.mend(self.model, dense.place(depth, pruned, masked), ())
                    self.watch("repairing blocks", order.index(depth) + 1, len(order))
                finish(depth)
                if depth < last:
                    dense.through(depth + 1)
                    remember(depth + 1)
                elif isinstance(whole, Concluding):
                    self._conclude(whole, dense, depth)

        return leaving

    def _conclude(self, whole: Concluding, dense: Dense, depth: int) -> None:
        """With the dense model's stream, which has gone through the block at `depth`: behind it nothing is pruned."""
        for later in range(depth + 1, len(self.anatomy.blocks)):
            dense.through(later)
        self.remarks += whole.conclude(self.model, self.anatomy, (), dense.hidden, self.tokens, self.placement, self.batch, self.watch)

    @property
    def together(self) -> int:
        """Sequences that pass through a block together where some of them are held out."""
        return in_small_steps(self.tokens, self.batch)
