"""Data to statistics, one block at a time: a generator whose caller prunes between its yields."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..errors import CalibrationError
from ..sites import Anatomy, Block, LinearSite
from ..stats import InputStats, Needs
from .placement import Placement
from .replay import Enough, Outputs, Replay, replaced

__all__ = ["View", "stream"]


@dataclass(frozen=True)
class View:
    """A matrix as calibration sees it: the module that holds it, and the moments of what it reads."""

    site: LinearSite
    module: nn.Module
    stats: InputStats


def stream(model: nn.Module, anatomy: Anatomy, sites: Sequence[LinearSite], tokens: Int[Tensor, "samples length"],
           needs: Needs, placement: Placement = Placement(), batch: int = 4,
           done: frozenset[int] = frozenset()) -> Iterator[list[View]]:
    """Yield, in the order of the forward pass, the Views of the sites that read one activation.

    Between two yields the caller may write to the matrices it was given: all later matrices, those of the same block
    too, see what the pruned model computes. No product is computed twice.
    Blocks in `done` are yielded whole and without statistics: their answers are known from an interrupted run.
    With needs "nothing" the model is not run. Raises CalibrationError when activations are not finite.
    """
    if needs == "nothing":
        for block in anatomy.blocks:
            chosen = _of(block, sites)
            if chosen:
                yield _views(model, chosen, needs, torch.device(placement.device))
        return
    last = max((site.block for site in sites), default=-1)
    device = torch.device(placement.device)
    with torch.no_grad(), _evaluating(model), Outputs.on(device) as outputs, ExitStack() as stack:
        states = _enter(model, anatomy, tokens, placement, batch, outputs, stack)
        for depth, block in enumerate(anatomy.blocks[: last + 1]):
            chosen = _of(block, sites)
            module = model.get_submodule(block.name)
            with placement.visiting(module), ExitStack() as inner:
                if depth in done:
                    yield _views(model, chosen, needs, device)
                elif chosen:
                    replay = Replay(outputs)
                    inner.enter_context(replay.inside(module, block.name, [site.name for site in _linear(block)]))
                    yield from _collect(module, depth, states, replay, _views(model, chosen, needs, device))
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


@dataclass
class _States:
    """The hidden states between two blocks, and the other arguments that each block is called with."""

    hidden: Tensor  # (samples, length, width)
    batch: int
    device: torch.device
    outputs: Outputs
    arguments: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=dict)  # by batch size

    def batches(self) -> Iterator[slice]:
        for start in range(0, len(self.hidden), self.batch):
            yield slice(start, min(start + self.batch, len(self.hidden)))

    def run(self, module: nn.Module, depth: int, rows: slice) -> Tensor:
        """The block's output for some sequences."""
        self.outputs.turn = rows.start
        inputs = self.hidden[rows].to(self.device)
        others, keywords = self.arguments[len(inputs)][depth]
        return _first(module(inputs, *others, **keywords))

    def advance(self, module: nn.Module, depth: int, name: str) -> None:
        """Replace the hidden states by the block's outputs."""
        for rows in self.batches():
            output = self.run(module, depth, rows)
            if not bool(torch.isfinite(output).all()):
                raise CalibrationError(f"{name}: its output is not finite. The model overflows in {output.dtype} "
                                       "or its weights are damaged; try --dtype float32.")
            self.hidden[rows] = output.to(self.hidden.device)


def _first(output: Any) -> Tensor:
    """A block gives a tensor or a tuple that starts with one, by model and version."""
    return output[0] if isinstance(output, tuple) else output


def _collect(module: nn.Module, depth: int, states: _States, replay: Replay, views: list[View]) -> Iterator[list[View]]:
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


def _enter(model: nn.Module, anatomy: Anatomy, tokens: Tensor, placement: Placement, batch: int, outputs: Outputs,
           stack: ExitStack) -> _States:
    """Run the embedding on all tokens, and the whole model once per batch size to learn every block's arguments."""
    device = torch.device(placement.device)
    batch = min(batch, len(tokens))
    home = next(model.parameters()).device
    first = model.get_submodule(anatomy.blocks[0].name)
    sizes = {batch, len(tokens) % batch or batch}
    arguments = {size: _arguments(model, anatomy, tokens[:size].to(home), device) for size in sizes}
    states: _States | None = None
    for start in range(0, len(tokens), batch):
        embedded = _entering(model, first, tokens[start : start + batch].to(home))
        if states is None:
            hidden = stack.enter_context(placement.hidden((len(tokens), *embedded.shape[1:]), embedded.dtype))
            states = _States(hidden, batch, device, outputs, arguments)
        states.hidden[start : start + batch] = embedded.to(states.hidden.device)
    assert states is not None
    return states


def _entering(model: nn.Module, first: nn.Module, tokens: Tensor) -> Tensor:
    """What the first block is given for `tokens`."""
    caught: list[Tensor] = []

    def hook(_: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        caught.append(_split(positional, keywords)[0])
        raise Enough

    _forward(model, tokens, {first: hook})
    return caught[0]


def _arguments(model: nn.Module, anatomy: Anatomy, tokens: Tensor,
               device: torch.device) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Every block's arguments but the hidden states, caught from a forward pass (masks and rotations differ by block).

    They depend on the shape of a batch alone, as sequences are never padded. Only the first block computes;
    the others pass its output on in the form it had.
    """
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    blocks = [model.get_submodule(block.name) for block in anatomy.blocks]
    form: list[Any] = []

    def record(real: Any) -> Any:
        def forward(*positional: Any, **keywords: Any) -> Any:
            hidden, others, rest = _split(positional, keywords)
            caught.append(_moved((others, rest), device))
            if len(caught) == len(blocks):
                raise Enough
            if not form:
                form.append(real(*positional, **keywords))
                return form[0]
            return (hidden, *form[0][1:]) if isinstance(form[0], tuple) else hidden
        return forward

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced(block, record(block.forward)))
        _forward(model, tokens, {})
    return caught


def _split(positional: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states, and the arguments beside them."""
    if positional:
        return positional[0], positional[1:], keywords
    rest = dict(keywords)
    return rest.pop("hidden_states"), (), rest


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors inside tuples, lists and dictionaries, on `device`."""
    match value:
        case Tensor():
            return value.to(device)
        case tuple() | list():
            return type(value)(_moved(item, device) for item in value)
        case dict():
            return {key: _moved(item, device) for key, item in value.items()}
        case _:
            return value


def _forward(model: nn.Module, tokens: Tensor, hooks: dict[nn.Module, Any]) -> None:
    """Run the model under hooks that may end the pass early."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    cached = {"use_cache": False} if getattr(model, "can_generate", lambda: False)() else {}
    try:
        with suppress(Enough):
            model(input_ids=tokens, **cached)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode (no dropout) for the duration."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
