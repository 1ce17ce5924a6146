"""What leaves the branches that are kept is refitted, so that the stream is what it was with those that go."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..calibration.blocks import States, enter, evaluating
from ..calibration.placement import Placement
from ..errors import CalibrationError, RecipeError
from ..silence import silenced
from ..sites import Anatomy, SublayerSite
from ..stats import InputStats
from ..surgery.write import module_layout

__all__ = ["Patch"]


@dataclass(frozen=True)
class Patch:
    """Every matrix that leaves a branch behind the first cut gets the least-squares map from what it reads to what the stream
    lacks there, added to it: with a its input in the pruned model, g the dense model's stream behind the branch less the
    pruned model's, and G = E[a a^T], W becomes W + E[g a^T] (G + d mean(diag G) I)^-1. A bias takes what is left of the mean.

    Branch by branch, so that what one map could not make up is left to the next. LinearPatch (Chen et al. 2025) and ReplaceMe
    (Shopkhoev et al. 2025) put a map of the stream at the cut; these are in matrices that the model has anyway.
    """

    damping: float = 0.3  # d: added to the Gram's diagonal, as a fraction of its mean

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise RecipeError(f"damping = {self.damping:g}: expected more than 0.")

    @torch.no_grad()
    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], tokens: Int[Tensor, "samples length"],
                placement: Placement, batch: int) -> None:
        first = min((site.block for site in gone), default=len(anatomy.blocks))
        with evaluating(model), ExitStack() as stack:
            dense = enter(model, anatomy, tokens, placement, batch, stack)
            for depth in range(first):
                _advance(model, anatomy, depth, dense, (), placement)
            hidden = stack.enter_context(placement.hidden(tuple(dense.hidden.shape), dense.hidden.dtype))
            pruned = States(hidden.copy_(dense.hidden), dense.batch, dense.device, dense.arguments)
            for depth in range(first, len(anatomy.blocks)):
                kept = [site for site in _branches(anatomy, depth) if site not in gone]
                with placement.hidden((len(kept), *dense.hidden.shape), dense.hidden.dtype) as targets:
                    with placement.visiting(model.get_submodule(anatomy.blocks[depth].name)):
                        for place, site in enumerate(kept):
                            _stream_behind(model, anatomy, site, dense, targets[place])
                    _advance(model, anatomy, depth, dense, (), placement)
                    with placement.visiting(model.get_submodule(anatomy.blocks[depth].name)):
                        for place, site in enumerate(kept):
                            self._refit(model, anatomy, site, gone, targets[place], pruned)
                _advance(model, anatomy, depth, pruned, gone, placement)

    def _refit(self, model: Any, anatomy: Anatomy, site: SublayerSite, gone: Sequence[SublayerSite], target: Tensor,
               pruned: States) -> None:
        """The matrix that leaves one branch, as everything before it is already."""
        output: Any = model.get_submodule(site.output)
        block: nn.Module = model.get_submodule(anatomy.blocks[site.block].name)
        later = _later(anatomy, site)
        silent = [*(other for other in gone if other.block == site.block and other not in later), *later]
        with silenced(model, silent):
            _check_added(site, output, block, pruned)
            self._add(output, *_moments(output, block, site, target, pruned))

    def _add(self, output: Any, stats: InputStats, lacking: Float[Tensor, "out in"], mean: Float[Tensor, "out"]) -> None:
        factor, failed = torch.linalg.cholesky_ex(stats.damped(self.damping).double())
        if int(failed):
            raise CalibrationError(f"{stats.name}: Gram matrix not positive definite after damping {self.damping}. Raise `damping` or "
                                   "calibrate with more tokens.")
        change = torch.cholesky_solve(lacking.double().T, factor).T.to(lacking)
        layout = module_layout(output, output.weight)
        kept = layout != 0
        layout += (change * kept).to(layout)
        if output.bias is not None:
            output.bias += (mean - change @ stats.mean).to(output.bias)


def _branches(anatomy: Anatomy, depth: int) -> list[SublayerSite]:
    return [site for site in anatomy.blocks[depth].sites if isinstance(site, SublayerSite)]


def _later(anatomy: Anatomy, site: SublayerSite) -> list[SublayerSite]:
    """The branches of the same block that follow."""
    branches = _branches(anatomy, site.block)
    return branches[branches.index(site) + 1 :]


def _advance(model: Any, anatomy: Anatomy, depth: int, states: States, gone: Sequence[SublayerSite], placement: Placement) -> None:
    """Through one block, without the branches that go."""
    name = anatomy.blocks[depth].name
    module: nn.Module = model.get_submodule(name)
    with placement.visiting(module), silenced(model, [site for site in gone if site.block == depth]):
        states.advance(module, depth, name)


def _stream_behind(model: Any, anatomy: Anatomy, site: SublayerSite, dense: States, target: Tensor) -> None:
    """The dense model's stream behind a branch, from its states at the entry of the branch's block."""
    module: nn.Module = model.get_submodule(anatomy.blocks[site.block].name)
    with silenced(model, _later(anatomy, site)):
        for rows in dense.batches():
            target[rows] = dense.run(module, site.block, rows).to(target.device)


def _moments(output: Any, block: nn.Module, site: SublayerSite, target: Tensor,
             pruned: States) -> tuple[InputStats, Float[Tensor, "out in"], Float[Tensor, "out"]]:
    """Of what a matrix reads, a; and the means of g a^T and of g, with g what the stream behind it lacks."""
    layout = module_layout(output, output.weight)
    stats = InputStats(layout.shape[1], "gram", pruned.device, name=site.output)
    lacking = torch.zeros(layout.shape, device=pruned.device)
    total = torch.zeros(layout.shape[0], device=pruned.device)
    seen: list[Tensor] = []
    handle = output.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    try:
        for rows in pruned.batches():
            seen.clear()
            behind = pruned.run(block, site.block, rows)
            gap = (target[rows].to(behind.device).float() - behind.float()).flatten(0, -2)
            read = seen[0].float().flatten(0, -2)
            stats.update(read)
            lacking += gap.T @ read
            total += gap.sum(0)
    finally:
        handle.remove()
    stats.check()
    return stats, lacking / stats.tokens, total / stats.tokens


def _check_added(site: SublayerSite, output: Any, block: nn.Module, pruned: States) -> None:
    """Whether what leaves the matrix is added to the stream as it is: then so is the change of one batch's product."""
    rows = next(pruned.batches())
    given: list[Tensor] = []
    handle = output.register_forward_hook(lambda _, __, gives: given.append(gives))
    whole = pruned.run(block, site.block, rows)
    handle.remove()
    handle = output.register_forward_hook(lambda _, __, gives: torch.zeros_like(gives))
    none = pruned.run(block, site.block, rows)
    handle.remove()
    added, product = (whole - none).float(), given[0].float()
    if (added - product.view_as(added)).norm() > 0.05 * product.norm():
        raise RecipeError(f"recovery 'patch': {site.output}: what leaves it is normed or scaled before it is added, or the sum is, which "
                          "this repair does not know. Leave recovery out (--recovery none).")
