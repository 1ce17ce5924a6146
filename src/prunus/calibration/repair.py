"""The least-squares change of a matrix that leaves a branch, so that the stream behind it is the dense model's."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import NotDefinite, RecipeError
from ..least_squares import fit_support
from ..silence import silenced
from ..sites import Anatomy, Block, SublayerSite
from ..stats import InputStats
from ..traits import module_layout, most_precise
from .blocks import States, enter, evaluating
from .pair import Place
from .placement import Placement

__all__ = ["LeastSquares"]

_STEPS, _ENOUGH = 30, 1e-3  # of conjugate gradients, where every row has kept weights of its own; and what is left of the residual


@dataclass(frozen=True)
class LeastSquares:
    """With a what a matrix reads in the pruned model, g the dense model's stream behind its branch less the pruned model's, and
    G = E[a a^T], the matrix W becomes W + E[g a^T] (G + d mean(diag G) I)^-1. A bias takes what is left of the mean."""

    damping: float = 0.3  # d: added to the Gram's diagonal, as a fraction of its mean
    form: Literal["matrix", "scale"] = "matrix"  # of the map; scale: one number for every row of W

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise RecipeError(f"damping = {self.damping:g}: expected more than 0.")

    @torch.no_grad()
    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """Whether what leaves a branch is added to the stream as it is: then so is the change of one batch's product. Raises
        RecipeError."""
        with evaluating(model), ExitStack() as stack:
            _check_added(model, anatomy.blocks[0], enter(model, anatomy, tokens[:batch], placement, batch, stack), placement)

    @torch.no_grad()
    def mend(self, model: Any, place: Place, gone: Sequence[SublayerSite]) -> None:
        """Repair one block, branch by branch, as everything before it is already. Raises CalibrationError."""
        for branch, aim in zip(place.kept, place.aims, strict=False):  # there are aims for as many branches as the widest block has
            self.refit(model, place.block, branch, gone, aim, place.pruned)

    def refit(self, model: Any, block: Block, branch: SublayerSite, gone: Sequence[SublayerSite], target: Tensor,
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
        kept = layout != 0
        change = self._map(stats, lacking, kept) if self.form == "matrix" else self._scaled(layout.to(lacking), stats, lacking)
        layout += change.to(layout)
        if output.bias is not None:
            output.bias += (mean - change @ stats.mean).to(output.bias)

    def _map(self, stats: InputStats, lacking: Float[Tensor, "out in"], kept: Bool[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The best of those that are 0 where nothing is kept: nearest, in the Gram's norm, to the best of all."""
        gram = stats.damped(self.damping)
        gram = gram.to(most_precise(gram.device))
        factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            raise NotDefinite(stats.name, self.damping)
        best = torch.cholesky_solve(lacking.to(gram).T, factor).T
        rows = kept.any(1)  # the others have gone, and with them nothing is to be made up
        change = torch.zeros_like(best)
        change[rows] = best[rows] if bool(kept[rows].all()) else fit_support(best[rows], kept[rows], gram, steps=_STEPS, tolerance=_ENOUGH)
        return change.to(lacking)

    def _scaled(self, weight: Tensor, stats: InputStats, lacking: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Of every row w: w times E[g_i w a] / (1 + d) E[(w a)^2]."""
        power = ((weight @ stats.gram) * weight).sum(1) * (1 + self.damping)
        return weight * ((weight * lacking).sum(1) / power.clamp_min(torch.finfo(power.dtype).tiny))[:, None]


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
                                  "is, which this repair does not know. Train blocks (--recovery reconstruct), or leave recovery out "
                                  "(--recovery none).")
