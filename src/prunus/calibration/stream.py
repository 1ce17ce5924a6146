"""Data to statistics, one block at a time: a generator whose caller prunes between its yields."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..sites import Anatomy, Block, LinearSite
from ..stats import InputStats, Needs
from .blocks import Enough, States, enter, evaluating
from .placement import Placement
from .replay import Outputs, Replay

__all__ = ["View", "stream"]


@dataclass(frozen=True)
class View:
    """A matrix as calibration sees it: the module that holds it, and the moments of what it reads."""

    site: LinearSite
    module: nn.Module
    stats: InputStats


def stream(model: nn.Module, anatomy: Anatomy, sites: Sequence[LinearSite], tokens: Int[Tensor, "samples length"],
           needs: Needs, placement: Placement = Placement(), batch: int = 4,
           done: frozenset[int] = frozenset(), leaving: Callable[[int, States], None] | None = None) -> Iterator[list[View]]:
    """Yield, in the order of the forward pass, the Views of the sites that read one activation.

    Between two yields the caller may write to the matrices it was given: all later matrices, those of the same block
    too, see what the pruned model computes. No product is computed twice.
    Blocks in `done` are yielded whole and without statistics: their answers are known from an interrupted run.
    Once the caller has done with a block, and before the stream goes through it, `leaving` is told its depth and the states at its
    entry; it may write to any of the block's parameters.
    With needs "nothing" the model is not run, and nothing is told. Raises CalibrationError when activations are not finite.
    """
    if needs == "nothing":
        for block in anatomy.blocks:
            chosen = _of(block, sites)
            if chosen:
                yield _views(model, chosen, needs, torch.device(placement.device))
        return
    last = max((site.block for site in sites), default=-1)
    device = torch.device(placement.device)
    with torch.no_grad(), evaluating(model), Outputs.on(device) as outputs, ExitStack() as stack:
        states = enter(model, anatomy, tokens, placement, batch, stack)
        for depth, block in enumerate(anatomy.blocks[: last + 1]):
            chosen = _of(block, sites)
            module = model.get_submodule(block.name)
            with placement.visiting(module), ExitStack() as inner:
                if depth in done:
                    yield _views(model, chosen, needs, device)
                elif chosen:
                    replay = Replay(states, outputs)
                    inner.enter_context(replay.inside(module, block.name, [site.name for site in _linear(block)]))
                    yield from _collect(module, depth, states, replay, _views(model, chosen, needs, device))
                if leaving:
                    inner.close()  # what the replay remembers may be changed now
                    leaving(depth, states)
                if depth < last:
                    states.advance(module, depth, block.name)


def _of(block: Block, sites: Sequence[LinearSite]) -> list[LinearSite]:
    wanted = {site.name for site in sites}
    return [site for site in _linear(block) if site.name in wanted]


def _linear(block: Block) -> list[LinearSite]:
    return [site for site in block.sites if isinstance(site, LinearSite)]


def _views(model: nn.Module, sites: list[LinearSite], needs: Needs, device: torch.device) -> list[View]:
    """One View per site; sites that read the same activation share one InputStats."""
    shared: dict[str, InputStats] = {}
    for site in sites:
        if site.reads not in shared:
            readers = sum(other.reads == site.reads for other in sites)
            shared[site.reads] = InputStats(site.shape[1], needs, device=device, name=site.name, readers=readers)
    return [View(site, model.get_submodule(site.name), shared[site.reads]) for site in sites]


def _collect(module: nn.Module, depth: int, states: States, replay: Replay, views: list[View]) -> Iterator[list[View]]:
    """Yield the block's views by the activation they read, each as soon as all passes have come to it."""
    replay.pending = {view.site.name: view.stats for view in views}
    while views:
        replay.reached = None
        for rows in states.batches():
            with suppress(Enough):
                states.run(module, depth, rows)
        reads = {view.site.reads for view in views if view.site.name == replay.reached}
        ready = [view for view in views if view.site.reads in reads] or views  # or what no pass comes to
        views = [view for view in views if view not in ready]
        for view in ready:
            del replay.pending[view.site.name]
        yield ready
        del ready, view  # their statistics are not needed while the next ones are made
