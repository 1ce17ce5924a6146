"""What every residual branch does to the stream that it is added to, in one pass; and the seconds that it takes."""

import statistics
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..silence import silenced
from ..sites import Anatomy
from ..speed import now
from ..stats import BranchStats
from .blocks import enter, evaluating
from .placement import Placement

__all__ = ["branch_seconds", "branch_stats"]

_LEAST = 1e-6  # seconds: less than that is lost in the noise


@torch.no_grad()
def branch_stats(model: nn.Module, anatomy: Anatomy, tokens: Int[Tensor, "samples length"],
                 placement: Placement = Placement(), batch: int = 4) -> dict[str, BranchStats]:
    """By sublayer site, over all tokens. Raises CalibrationError when hidden states are not finite.

    The stream behind a branch is what its block gives without the branches that follow: whatever the family puts around
    them, norms behind a branch and factors too, is counted as theirs.
    """
    found: dict[str, BranchStats] = {}
    with evaluating(model), ExitStack() as stack:
        states = enter(model, anatomy, tokens, placement, batch, stack)
        leaving = _last(states.hidden)
        for depth, block in enumerate(anatomy.blocks):
            module = model.get_submodule(block.name)
            sums = torch.zeros(len(block.branches), 5, dtype=torch.float64)
            with placement.visiting(module):
                for rows in states.batches():
                    given = before = states.hidden[rows].to(states.device)
                    for place, branch in enumerate(block.branches):
                        with silenced(model, block.later(branch)):
                            behind = states.run(module, depth, rows)
                        sums[place] += _moments(given, before, behind).cpu()
                        before = behind
                    states.enter_next(rows, before if block.branches else states.run(module, depth, rows), block.name)
            sums[:, 4] = sums[-1:, 4]  # behind the last branch the block is whole
            entering, leaving = leaving, _last(states.hidden)
            for site, (cosine, relative, power, added, whole) in zip(block.branches, (sums / tokens.numel()).tolist(), strict=True):
                found[site.name] = BranchStats(cosine, relative, power**0.5, added**0.5, whole, entering, leaving)
    return found


def _last(hidden: Float[Tensor, "samples length width"]) -> Float[Tensor, "samples width"]:
    """The direction of every sequence's last token."""
    return nn.functional.normalize(hidden[:, -1].float(), dim=-1).cpu()


def _moments(given: Float[Tensor, "*tokens width"], before: Float[Tensor, "*tokens width"],
             behind: Float[Tensor, "*tokens width"]) -> Float[Tensor, "5"]:
    """Sums over tokens: of both cosines, the relative norm, and squared norms."""
    given, before, behind = (value.float().flatten(0, -2) for value in (given, before, behind))
    added = behind - before
    cosine = torch.cosine_similarity(before, behind, dim=-1).sum()
    power, more = before.square().sum(-1), added.square().sum(-1)
    relative = (more / power.clamp_min(1e-30)).sqrt().sum()
    whole = torch.cosine_similarity(given, behind, dim=-1).sum()
    return torch.stack([cosine, relative, power.sum(), more.sum(), whole])


@torch.no_grad()
def branch_seconds(model: nn.Module, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement = Placement(),
                   repetitions: int = 5) -> dict[str, float]:
    """By sublayer site: the seconds of its block less those of the block without it, for the first sequence of `tokens`; the
    median over repetitions, after one that warms up. At least a microsecond."""
    found: dict[str, float] = {}
    with evaluating(model), ExitStack() as stack:
        states = enter(model, anatomy, tokens[:1], placement, 1, stack)

        def taken(module: nn.Module, depth: int) -> float:
            start = now(states.device)
            states.run(module, depth, slice(0, 1))
            return now(states.device) - start

        for depth, block in enumerate(anatomy.blocks):
            module = model.get_submodule(block.name)
            with placement.visiting(module):
                saved: dict[str, list[float]] = {site.name: [] for site in block.branches}
                for _ in range(repetitions + 1):
                    whole = taken(module, depth)
                    for site in block.branches:
                        with silenced(model, [site]):
                            saved[site.name].append(whole - taken(module, depth))
                states.advance(module, depth, block.name)
            found |= {name: max(statistics.median(values[1:]), _LEAST) for name, values in saved.items()}
    return found
