"""Data to statistics, one block at a time: a generator whose caller prunes between its yields."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..sites import Anatomy, Block, LinearSite
from ..stats import InputStats, Needs, most
from .blocks import States, enter, evaluating
from .loss import token_weights
from .placement import Placement
from .replay import AtOnce, Outputs, Replay
from .target import Target

__all__ = ["Beside", "Leaving", "View", "stream"]


@dataclass(frozen=True)
class View:
    """A matrix as calibration sees it: the module that holds it, and the moments of what it reads."""

    site: LinearSite
    module: nn.Module
    stats: InputStats


@dataclass(frozen=True)
class Beside:
    """A block of the dense model that runs beside, and its hidden states at the entry."""

    block: nn.Module
    states: States


Leaving = Callable[[int, States, Beside | None], None]  # told a block's depth, the states at its entry, and what runs beside


def stream(model: nn.Module, anatomy: Anatomy, sites: Sequence[LinearSite], tokens: Int[Tensor, "samples length"],
           needs: Needs, placement: Placement = Placement(), batch: int = 4,
           done: frozenset[int] = frozenset(), target: Target = Target(),
           leaving: Leaving | None = None) -> Iterator[list[View]]:
    """Yield, in the order of the forward pass, the Views of the sites that read one activation.

    Between two yields the caller may write to the matrices it was given: all later matrices, those of the same block
    too unless `target` says otherwise, see what the pruned model computes. No product is computed twice.
    Blocks in `done` are yielded whole and without statistics: their answers are known from an interrupted run.
    Once the caller has done with a block, and before the stream goes through it, `leaving` is told its depth, the states at its
    entry, and what runs beside, if anything does; it may write to any of the block's parameters.
    With needs "nothing", for the target too, the model is not run, and nothing is told. With asymmetry the dense model runs beside: its
    hidden states wait too, and a copy of one block is in memory. Raises CalibrationError when activations are not finite.
    """
    needs = most(needs, target.needs)
    if needs == "nothing":
        for block in anatomy.blocks:
            chosen = _of(block, sites)
            if chosen:
                yield _views(model, chosen, needs, torch.device(placement.device))
        return
    last = max((site.block for site in sites), default=-1)
    weights = token_weights(model, anatomy, tokens, batch) if target.fisher else None
    with torch.no_grad(), evaluating(model), ExitStack() as stack:
        states = enter(model, anatomy, tokens, placement, batch, stack)
        paths = [_Path.of(states, target, stack)]
        if target.asymmetry:
            hidden = stack.enter_context(placement.hidden(tuple(states.hidden.shape), states.hidden.dtype))
            paths.append(_Path.of(replace(states, hidden=hidden.copy_(states.hidden)), target, stack))
        for depth, block in enumerate(anatomy.blocks[: last + 1]):
            chosen = _of(block, sites)
            module = model.get_submodule(block.name)
            with placement.visiting(module), ExitStack() as inner:
                modules = [module, *(deepcopy(module) if chosen or leaving else module for _ in paths[1:])]  # callers write to the first
                if depth in done:
                    yield _views(model, chosen, needs, states.device)
                elif chosen:
                    looks = [inner.enter_context(path.through(own, block)) for path, own in zip(paths, modules, strict=True)]
                    yield from _collect(looks, depth, states, _views(model, chosen, needs, states.device, bool(target.asymmetry)),
                                        None if weights is None else weights[depth])
                if leaving:
                    inner.close()  # what the replay remembers may be changed now
                    leaving(depth, states, Beside(modules[1], paths[1].states) if target.asymmetry else None)
                for path, own in zip(paths, modules, strict=True) if depth < last else ():
                    path.states.advance(own, depth, block.name)


@dataclass(frozen=True)
class _Path:
    """The hidden states of one of the models that run side by side."""

    states: States
    outputs: Outputs | None  # none where a block is passed through as a whole

    @classmethod
    def of(cls, states: States, target: Target, stack: ExitStack) -> "_Path":
        return cls(states, stack.enter_context(Outputs.on(states.device)) if target.true_sequential else None)

    @contextmanager
    def through(self, module: nn.Module, block: Block) -> Iterator["_Look"]:
        """Look at a block's inputs for the duration."""
        way = Replay(self.states, self.outputs) if self.outputs else AtOnce(self.states)
        with way.inside(module, block.name, [site.name for site in block.matrices]):
            yield _Look(module, way)


@dataclass(frozen=True)
class _Look:
    """A block, and the way through it."""

    module: nn.Module
    way: Replay | AtOnce


def _of(block: Block, sites: Sequence[LinearSite]) -> list[LinearSite]:
    wanted = {site.name for site in sites}
    return [site for site in block.matrices if site.name in wanted]


def _views(model: nn.Module, sites: list[LinearSite], needs: Needs, device: torch.device, asymmetric: bool = False) -> list[View]:
    """One View per site; sites that read the same activation share one InputStats."""
    shared: dict[str, InputStats] = {}
    for site in sites:
        if site.reads not in shared:
            readers = sum(other.reads == site.reads for other in sites)
            shared[site.reads] = InputStats(site.shape[1], needs, device=device, name=site.name, readers=readers, asymmetric=asymmetric)
    return [View(site, model.get_submodule(site.name), shared[site.reads]) for site in sites]


def _collect(looks: list[_Look], depth: int, states: States, views: list[View],
             weights: Float[Tensor, "samples length"] | None) -> Iterator[list[View]]:
    """Yield the block's views by the activation they read, each as soon as all passes have come to it."""
    for look in looks:
        look.way.pending = {view.site.name for view in views}
    while views:
        caught: dict[str, Tensor] = {}
        for rows in states.batches():
            caught, *dense = (look.way.seen(look.module, depth, rows) for look in looks)
            for view in {view.site.reads: view for view in views if view.site.name in caught}.values():
                name = view.site.name
                view.stats.update(caught[name], None if weights is None else weights[rows], dense[0][name] if dense else None)
        reached = dict.fromkeys(view.site.reads for view in views if view.site.name in caught)
        groups = [[view for view in views if view.site.reads == reads] for reads in reached] or [views]  # or what no pass comes to
        views = [view for view in views if reached and view.site.reads not in reached]
        for look in looks:
            look.way.pending = {view.site.name for view in views}
        while groups:
            yield groups.pop(0)  # their statistics are not needed while the next ones are made
