"""A model's own blocks, run one at a time with the arguments that the model gives them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..sites import Anatomy
from ..stats import finite
from ..traits import uncached
from .placement import Placement

__all__ = ["Enough", "States", "enter", "evaluating", "frozen", "hidden_of", "replaced"]


class Enough(Exception):
    """Raised inside a forward pass when nothing more is to be learned from it."""


@contextmanager
def replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """Another `forward` on one module for the duration; one that somebody had set before is put back."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@dataclass
class States:
    """The hidden states between two blocks, and the other arguments that each block is called with."""

    hidden: Tensor  # (samples, length, width)
    batch: int
    device: torch.device
    arguments: dict[int, "Arguments"]  # by batch size
    turn: int = 0  # the first of the sequences that run now

    def batches(self, count: int | None = None) -> Iterator[slice]:
        """The sequences (or the first `count` of them) as they run together."""
        count = len(self.hidden) if count is None else count
        for start in range(0, count, self.batch):
            yield slice(start, min(start + self.batch, count))

    def run(self, module: nn.Module, depth: int, rows: slice) -> Tensor:
        """The block's output for some sequences."""
        self.turn = rows.start
        return self.call(module, depth, self.hidden[rows])

    def call(self, module: nn.Module, depth: int, inputs: Tensor) -> Tensor:
        """The block's output for any inputs, as many sequences as a batch has."""
        others, keywords = self.arguments[len(inputs)].by_depth[depth]
        return hidden_of(module(inputs.to(self.device), *others, **keywords))

    def leave(self, model: Any, anatomy: Anatomy, tokens: Tensor, hidden: Tensor) -> Tensor:
        """The logits for what the last block gave: the model's own forward pass, in which the blocks are passed over.

        Whatever comes behind the blocks treats positions alike, so any slice of a batch's positions may be given.
        """
        form = next(iter(self.arguments.values())).form

        def last(*_: Any, **__: Any) -> Any:
            return hidden if form is None else (hidden, *form)

        with ExitStack() as stack:
            for block in anatomy.blocks:
                stack.enter_context(replaced(model.get_submodule(block.name), last))
            logits: Tensor = model(input_ids=tokens, use_cache=False).logits
        return logits

    def advance(self, module: nn.Module, depth: int, name: str) -> None:
        """Replace the hidden states by the block's outputs. Raises CalibrationError when they are not finite."""
        for rows in self.batches():
            self.enter_next(rows, self.run(module, depth, rows), name)

    def enter_next(self, rows: slice, output: Tensor, name: str) -> None:
        """What block `name` gave for some sequences is what the next one is given. Raises CalibrationError when it is not finite."""
        if not finite(output):
            raise CalibrationError(f"{name}: its output is not finite. The model overflows in {output.dtype} "
                                   "or its weights are damaged; try --dtype float32.")
        self.hidden[rows] = output.to(self.hidden.device)


@dataclass(frozen=True)
class Arguments:
    """What blocks are called with beside the hidden states, and what they give beside them."""

    by_depth: list[tuple[tuple[Any, ...], dict[str, Any]]]
    form: tuple[Any, ...] | None  # the rest of the tuple that a block gives; None when it gives a tensor


def hidden_of(output: Any) -> Tensor:
    """A block gives a tensor or a tuple that starts with one, by model and version."""
    return output[0] if isinstance(output, tuple) else output


def enter(model: nn.Module, anatomy: Anatomy, tokens: Tensor, placement: Placement, batch: int,
          stack: ExitStack) -> States:
    """Run the embedding on all tokens, and the whole model once per batch size to learn every block's arguments."""
    device = torch.device(placement.device)
    batch = min(batch, len(tokens))
    home = next(model.parameters()).device
    first = model.get_submodule(anatomy.blocks[0].name)
    sizes = {batch, len(tokens) % batch or batch}
    arguments = {size: _arguments(model, anatomy, tokens[:size].to(home), device) for size in sizes}
    states: States | None = None
    for start in range(0, len(tokens), batch):
        embedded = _entering(model, first, tokens[start : start + batch].to(home))
        if states is None:
            hidden = stack.enter_context(placement.hidden((len(tokens), *embedded.shape[1:]), embedded.dtype))
            states = States(hidden, batch, device, arguments)
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


def _arguments(model: nn.Module, anatomy: Anatomy, tokens: Tensor, device: torch.device) -> Arguments:
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
            if not form:
                form.append(real(*positional, **keywords))
            if len(caught) == len(blocks):
                raise Enough
            if len(caught) == 1:
                return form[0]
            return (hidden, *form[0][1:]) if isinstance(form[0], tuple) else hidden
        return forward

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced(block, record(block.forward)))
        _forward(model, tokens, {})
    return Arguments(caught, _moved(form[0][1:], device) if isinstance(form[0], tuple) else None)


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
    try:
        with suppress(Enough):
            model(input_ids=tokens, **uncached(model))
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode (no dropout) for the duration."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for its gradient, whatever it did before and will do after."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(False)
        for parameter in asking:
            parameter.requires_grad_(True)
