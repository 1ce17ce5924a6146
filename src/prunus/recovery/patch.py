"""What leaves the branches that are kept is refitted, so that the stream is what it was with those that go."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..calibration.blocks import States, enter, evaluating
from ..calibration.pair import Watch, advance, places, stream_behind, unwatched
from ..calibration.placement import Placement
from ..calibration.repair import LeastSquares
from ..silence import silenced
from ..sites import Anatomy, SublayerSite

__all__ = ["Patch"]


@dataclass(frozen=True)
class Patch:
    """Every matrix that leaves a branch, from the first block on that lost branches or channels, gets the least-squares map from
    what it reads to what the stream lacks there, added to it: with a its input in the pruned model, g the dense model's stream behind
    the branch less the pruned model's, and G = E[a a^T], W becomes W + E[g a^T] (G + d mean(diag G) I)^-1. A bias takes what is left
    of the mean.

    Branch by branch and in the order of the forward pass, so that what one map could not make up is left to the next. LinearPatch
    (Chen et al. 2025) and ReplaceMe (Shopkhoev et al. 2025) put a map of the stream at the cut; these are in matrices that the model
    has anyway.
    """

    damping: float = 0.3  # d: added to the Gram's diagonal, as a fraction of its mean
    form: Literal["matrix", "scale"] = "matrix"  # of the map; scale: one number for every row of W, where text is scarce

    def __post_init__(self) -> None:
        LeastSquares(self.damping, self.form)

    @property
    def _least_squares(self) -> LeastSquares:
        return LeastSquares(self.damping, self.form)

    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """Whether what leaves a branch is added to the stream as it is."""
        self._least_squares.check(model, anatomy, tokens, placement, batch)

    @torch.no_grad()
    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> Sequence[str]:
        for place in places(model, anatomy, gone, dense, tokens, placement, batch, watch):
            self._least_squares.mend(model, place, gone)
        return ()

    def rehearse(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement,
                 batch: int, stack: ExitStack) -> "Rehearsal":
        """The same repair for one set of branches after another, of which nothing stays."""
        return Rehearsal(self._least_squares, model, anatomy, tokens, placement, batch, stack)


class Rehearsal:
    """Repairs one block at a time, for as long as it is looked at.

    Holds the dense model's stream behind every branch: samples x length x width numbers for each.
    """

    @torch.no_grad()
    def __init__(self, repair: LeastSquares, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement,
                 batch: int, stack: ExitStack) -> None:
        self.repair, self.model, self.anatomy = repair, model, anatomy
        with evaluating(model):
            self._states = enter(model, anatomy, tokens, placement, batch, stack)
            self.entry = self._states.hidden.clone()  # of the first block
            self._behind: dict[str, Tensor] = {}
            for depth, block in enumerate(anatomy.blocks):
                for branch in block.branches:
                    self._behind[branch.name] = torch.empty_like(self.entry)
                    stream_behind(model, block, branch, self._states, self._behind[branch.name])
                advance(model, block, depth, self._states, (), placement)

    @contextmanager
    def block(self, depth: int, gone: Sequence[SublayerSite],
              hidden: Float[Tensor, "samples length width"]) -> Iterator[Float[Tensor, "samples length width"]]:
        """One block repaired as far as branches have gone before or in it, with the stream of the repaired model at its entry; gives
        the stream behind it. Raises CalibrationError like `recover`."""
        block, states = self.anatomy.blocks[depth], self._states
        pruned = States(hidden, states.batch, states.device, states.arguments)
        with ExitStack() as stack:
            for branch in self._refitted(depth, gone):
                stack.enter_context(_restored(self.model.get_submodule(branch.output)))
                self.repair.refit(self.model, block, branch, gone, self._behind[branch.name], pruned)
            behind, module = torch.empty_like(hidden), self.model.get_submodule(block.name)
            with silenced(self.model, [branch for branch in block.branches if branch in gone]):
                for rows in pruned.batches():
                    behind[rows] = pruned.run(module, depth, rows).to(behind.device)
            yield behind

    def passes(self, depth: int, gone: Sequence[SublayerSite]) -> int:
        """Of the calibration text through the block, for what `block` gives."""
        return 1 + len(self._refitted(depth, gone))

    def _refitted(self, depth: int, gone: Sequence[SublayerSite]) -> list[SublayerSite]:
        cut = any(site.block <= depth for site in gone)
        return [branch for branch in self.anatomy.blocks[depth].branches if cut and branch not in gone]


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """The parameters of a module are what they were afterwards."""
    before = [parameter.detach().clone() for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, value in zip(module.parameters(), before, strict=True):
            parameter.data.copy_(value)
