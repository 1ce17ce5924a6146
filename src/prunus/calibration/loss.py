"""How the loss depends on every matrix: backward passes through the whole model, from which a few numbers per matrix stay."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import CalibrationError
from ..sites import Anatomy, LinearSite
from ..stats import LossNeeds, LossStats
from .blocks import evaluating

__all__ = ["loss_stats"]


def loss_stats(model: Any, anatomy: Anatomy, sites: Sequence[LinearSite], tokens: Int[Tensor, "samples length"],
               needs: LossNeeds, seed: int = 0) -> dict[str, LossStats]:
    """By site. One backward pass per sequence; traces take two more, the second through the first.

    The model computes where it is, and its weights are only read. Activations of a whole pass are in memory, and for
    traces three tensors as large as the sites' weights too. Raises CalibrationError when a gradient is not finite.
    """
    tokens = tokens[: needs.sequences].to(next(model.parameters()).device)
    with evaluating(model), _frozen(model):
        found = _slopes(model, anatomy, sites, tokens)
        if needs.curvature:
            traces = _traces(model, [site.name for site in sites], tokens, seed)
            found = {name: replace(value, trace=traces[name]) for name, value in found.items()}
    for name, value in found.items():
        if not all(number is None or math.isfinite(number) for number in (value.output, value.stream, value.trace)):
            raise CalibrationError(f"{name}: the gradient of the loss is not finite. The model overflows in this dtype or its "
                                   "weights are damaged; try --dtype float32.")
    return found


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for its gradient, whatever it did before and will do after."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(False)
        for parameter in asking:
            parameter.requires_grad_(True)


def _loss(model: Any, tokens: Tensor) -> Tensor:
    """Cross-entropy of the next token, summed."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


class _Watched:
    """The sum over tokens of the square of what a module gives, times that of the loss's gradient there."""

    def __init__(self) -> None:
        self.sum = 0.0

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Called with every output of the module."""
        value: Tensor = output[0] if isinstance(output, tuple) else output
        size = value.detach().float().square().sum(-1)

        def back(gradient: Tensor) -> None:
            self.sum += float((gradient.float().square().sum(-1) * size).sum(dtype=torch.float64))

        value.register_hook(back)


def _slopes(model: Any, anatomy: Anatomy, sites: Sequence[LinearSite], tokens: Tensor) -> dict[str, LossStats]:
    watched = {name: _Watched() for name in [*(site.name for site in sites), *(block.name for block in anatomy.blocks)]}

    def begin(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.requires_grad_()  # nothing before it does, so that this is where the graph begins

    with ExitStack() as stack:
        stack.callback(model.get_input_embeddings().register_forward_hook(begin).remove)
        for name, sums in watched.items():
            stack.callback(model.get_submodule(name).register_forward_hook(sums.hook).remove)
        for row in tokens:
            with torch.enable_grad():
                _loss(model, row[None]).backward()
    means = {name: sums.sum / tokens.numel() for name, sums in watched.items()}
    return {site.name: LossStats(means[site.name], means[anatomy.blocks[site.block].name]) for site in sites}


def _traces(model: Any, names: Sequence[str], tokens: Tensor, seed: int) -> dict[str, float]:
    """Hutchinson's estimate with one probe v of random signs per sequence: the mean of v^T H v, for all matrices at once."""
    weights: list[Tensor] = [model.get_submodule(name).weight for name in names]
    draw = torch.Generator().manual_seed(seed)
    totals = [0.0] * len(names)
    for weight in weights:
        weight.requires_grad_(True)
    for row in tokens:
        signs = [(torch.randint(0, 2, weight.shape, generator=draw) * 2 - 1).to(weight) for weight in weights]
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
            loss = _loss(model, row[None]) / (tokens.shape[1] - 1)
            slopes = torch.autograd.grad(loss, weights, create_graph=True)
            along = torch.stack([(slope * sign).sum() for slope, sign in zip(slopes, signs, strict=True)]).sum()
            products = torch.autograd.grad(along, weights)
        for index, (product, sign) in enumerate(zip(products, signs, strict=True)):
            totals[index] += float((product * sign).sum(dtype=torch.float64)) / len(tokens)
    return dict(zip(names, totals, strict=True))
