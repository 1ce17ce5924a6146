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
from ..sites import Anatomy, Block, SublayerSite
from ..stats import InputStats
from ..surgery.write import module_layout

__all__ = ["Patch"]


@dataclass(frozen=True)
class Patch:
    """Every output matrix behind the first branch that goes gets the least-squares map from what it reads to what the stream
    lacks there, added to it: with a its input in the pruned model, g = the dense model's stream behind its branch less the
    pruned model's, and G = E[a a^T], W becomes W + E[g a^T] (G + d mean(diag G) I)^-1. A bias takes what is left of the mean.

    Block by block, so that what one map could not make up is left to the next. Nothing is added to the model, as the maps that
    LinearPatch (Chen et al. 2025) and ReplaceMe (Shopkhoev et al. 2025) put at a cut are, in part, in matrices it has.
    """

    damping: float = 0.01  # d: added to the Gram's diagonal, as a fraction of its mean

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise RecipeError(f"damping = {self.damping:g}: expected more than 0.")

    @torch.no_grad()
    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], tokens: Int[Tensor, "samples length"],
                placement: Placement, batch: int) -> None:
        first = min((site.block for site in gone), default=len(anatomy.blocks))
        with evaluating(model), ExitStack() as stack:
            dense = enter(model, anatomy, tokens, placement, batch, stack)
            for depth, block in enumerate(anatomy.blocks[:first]):
                with placement.visiting(model.get_submodule(block.name)):
                    dense.advance(model.get_submodule(block.name), depth, block.name)
            hidden = stack.enter_context(placement.hidden(tuple(dense.hidden.shape), dense.hidden.dtype))
            hidden.copy_(dense.hidden)
            pruned = States(hidden, dense.batch, dense.device, dense.arguments)
            for depth, block in enumerate(anatomy.blocks[first:], first):
                with placement.visiting(model.get_submodule(block.name)):
                    self._repair(model, block, depth, [site for site in gone if site.block == depth], dense, pruned, stack, placement)

    def _repair(self, model: Any, block: Block, depth: int, gone: Sequence[SublayerSite], dense: States, pruned: States,
                stack: ExitStack, placement: Placement) -> None:
        """One block: its targets come from the dense weights, which are then changed branch by branch."""
        module = model.get_submodule(block.name)
        branches = [site for site in block.sites if isinstance(site, SublayerSite)]
        kept = [site for site in branches if site not in gone]
        with placement.hidden((len(kept), *dense.hidden.shape), dense.hidden.dtype) as targets:
            for rows in dense.batches():
                for place, site in enumerate(kept):
                    with silenced(model, branches[branches.index(site) + 1 :]):
                        targets[place, rows] = dense.run(module, depth, rows).to(targets.device)
            dense.advance(module, depth, block.name)
            for place, site in enumerate(kept):
                later = branches[branches.index(site) + 1 :]
                with silenced(model, [*(other for other in gone if other not in later), *later]):
                    self._refit(model, site, module, depth, targets[place], pruned)
        with silenced(model, gone):
            pruned.advance(module, depth, block.name)

    def _refit(self, model: Any, site: SublayerSite, block: nn.Module, depth: int, target: Tensor, pruned: States) -> None:
        output: Any = model.get_submodule(site.output)
        seen: list[Tensor] = []
        handle = output.register_forward_hook(lambda _, given, gives: seen.extend((given[0], gives)))
        layout = module_layout(output, output.weight)
        stats = InputStats(layout.shape[1], "gram", pruned.device, name=site.output)
        lacking = torch.zeros(layout.shape, device=pruned.device)  # sum of g a^T
        total = torch.zeros(layout.shape[0], device=pruned.device)  # and of g
        try:
            for rows in pruned.batches():
                seen.clear()
                behind = pruned.run(block, depth, rows)
                gap = (target[rows].to(behind.device).float() - behind.float()).flatten(0, -2)
                read = seen[0].float().flatten(0, -2)
                stats.update(read)
                lacking += gap.T @ read
                total += gap.sum(0)
        finally:
            handle.remove()
        stats.check()
        self._add(output, layout, lacking / stats.tokens, total / stats.tokens, stats)

    def _add(self, output: Any, layout: Float[Tensor, "out in"], lacking: Float[Tensor, "out in"], mean: Float[Tensor, "out"],
             stats: InputStats) -> None:
        factor, failed = torch.linalg.cholesky_ex(stats.damped(self.damping).double())
        if int(failed):
            raise CalibrationError(f"{stats.name}: Gram matrix not positive definite after damping {self.damping}. Raise `damping` or "
                                   "calibrate with more tokens.")
        change = torch.cholesky_solve(lacking.double().T, factor).T.to(lacking)
        kept = layout != 0
        layout += (change * kept).to(layout)
        if output.bias is not None:
            output.bias += (mean - change @ stats.mean).to(output.bias)
