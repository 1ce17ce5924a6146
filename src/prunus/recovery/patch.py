"""What leaves the branches that are kept is refitted, so that the stream is what it was with those that go."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..calibration.blocks import States, enter, evaluating
from ..calibration.pair import Place, advance, places, stream_behind
from ..calibration.placement import Placement
from ..errors import CalibrationError, RecipeError
from ..silence import silenced
from ..sites import Anatomy, Block, SublayerSite
from ..stats import InputStats
from ..surgery.write import module_layout

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
        if self.damping <= 0:
            raise RecipeError(f"damping = {self.damping:g}: expected more than 0.")

    @torch.no_grad()
    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """Whether what leaves a branch is added to the stream as it is: then so is the change of one batch's product."""
        with evaluating(model), ExitStack() as stack:
            _check_added(model, anatomy.blocks[0], enter(model, anatomy, tokens[:batch], placement, batch, stack), placement)

    @torch.no_grad()
    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        for place in places(model, anatomy, gone, dense, tokens, placement, batch):
            self.mend(model, place, gone)

    @torch.no_grad()
    def mend(self, model: Any, place: Place, gone: Sequence[SublayerSite]) -> None:
        """Repair one block, as everything before it is already."""
        for branch, aim in zip(place.kept, place.aims, strict=True):
            self._refit(model, place.block, branch, gone, aim, place.pruned)

    def rehearse(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement,
                 batch: int, stack: ExitStack) -> "Rehearsal":
        """The same repair for one set of branches after another, of which nothing stays."""
        return Rehearsal(self, model, anatomy, tokens, placement, batch, stack)

    def _refit(self, model: Any, block: Block, branch: SublayerSite, gone: Sequence[SublayerSite], target: Tensor,
               pruned: States) -> None:
        """The matrix that leaves one branch, as everything before it is already."""
        output, module = model.get_submodule(branch.output), model.get_submodule(block.name)
        later = block.later(branch)
        with silenced(model, [other for other in block.branches if other in gone or other in later]):
            self._add(output, *_moments(output, module, branch, target, pruned))

    def _add(self, output: Any, stats: InputStats, lacking: Float[Tensor, "out in"], mean: Float[Tensor, "out"]) -> None:
        layout = module_layout(output, output.weight)
        if not layout.any():
            return  # all its channels have gone
        change = self._map(stats, lacking) if self.form == "matrix" else self._scaled(layout.to(lacking), stats, lacking)
        kept = layout != 0
        layout += (change * kept).to(layout)
        if output.bias is not None:
            output.bias += (mean - change @ stats.mean).to(output.bias)

    def _map(self, stats: InputStats, lacking: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        factor, failed = torch.linalg.cholesky_ex(stats.damped(self.damping).double())
        if int(failed):
            raise CalibrationError(f"{stats.name}: Gram matrix not positive definite after damping {self.damping}. Raise `damping` or "
                                   "calibrate with more tokens.")
        return torch.cholesky_solve(lacking.double().T, factor).T.to(lacking)

    def _scaled(self, weight: Tensor, stats: InputStats, lacking: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Of every row w: w times E[g_i w a] / (1 + d) E[(w a)^2]."""
        power = ((weight @ stats.gram) * weight).sum(1) * (1 + self.damping)
        return weight * ((weight * lacking).sum(1) / power.clamp_min(torch.finfo(power.dtype).tiny))[:, None]


class Rehearsal:
    """Repairs one block at a time, for as long as it is looked at.

    Holds the dense model's stream behind every branch: samples x length x width numbers for each.
    """

    @torch.no_grad()
    def __init__(self, patch: Patch, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement,
                 batch: int, stack: ExitStack) -> None:
        self.patch, self.model, self.anatomy = patch, model, anatomy
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
                self.patch._refit(self.model, block, branch, gone, self._behind[branch.name], pruned)
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


def _moments(output: Any, module: nn.Module, branch: SublayerSite, target: Tensor,
             pruned: States) -> tuple[InputStats, Float[Tensor, "out in"], Float[Tensor, "out"]]:
    """Of what a matrix reads, a; and the means of g a^T and of g, with g what the stream behind it lacks."""
    layout = module_layout(output, output.weight)
    stats = InputStats(layout.shape[1], "gram", pruned.device, name=branch.output)
    lacking = torch.zeros(layout.shape, device=pruned.device)
    total = torch.zeros(layout.shape[0], device=pruned.device)
    seen: list[Tensor] = []
    handle = output.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    try:
        for rows in pruned.batches():
            seen.clear()
            behind = pruned.run(module, branch.block, rows)
            gap = (target[rows].to(behind.device).float() - behind.float()).flatten(0, -2)
            read = seen[0].float().flatten(0, -2)
            stats.update(read)
            lacking += gap.T @ read
            total += gap.sum(0)
    finally:
        handle.remove()
    stats.check()
    return stats, lacking / stats.tokens, total / stats.tokens


def _check_added(model: Any, block: Block, dense: States, placement: Placement) -> None:
    module: nn.Module = model.get_submodule(block.name)
    rows = next(dense.batches())
    with placement.visiting(module):
        for branch in block.branches:
            output = model.get_submodule(branch.output)
            with silenced(model, block.later(branch)):
                given: list[Tensor] = []
                handle = output.register_forward_hook(lambda _, __, gives, given=given: given.append(gives))
                whole = dense.run(module, branch.block, rows)
                handle.remove()
                handle = output.register_forward_hook(lambda _, __, gives: torch.zeros_like(gives))
                none = dense.run(module, branch.block, rows)
                handle.remove()
            added, product = (whole - none).float(), given[0].float()
            if (added - product.view_as(added)).norm() > 0.05 * product.norm():
                raise RecipeError(f"recovery 'patch': {branch.output}: what leaves it is normed or scaled before it is added, or the sum "
                                  "is, which this repair does not know. Leave recovery out (--recovery none).")
