"""How the loss depends on every matrix or channel: backward passes through the whole model, from which a few numbers stay."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import CalibrationError
from ..sites import Anatomy, ChannelSite, LinearSite, Site, SublayerSite
from ..stats import ChannelLoss, ChannelSum, LossNeeds, LossStats, finite
from ..traits import module_layout, total
from .blocks import evaluating, frozen

__all__ = ["channel_loss", "known_loss", "loss_stats", "token_weights"]

_EXTREME = 10.0  # times the mean: no token counts for more


def loss_stats(model: Any, anatomy: Anatomy, sites: Sequence[LinearSite], tokens: Int[Tensor, "samples length"],
               needs: LossNeeds, seed: int = 0) -> dict[str, LossStats]:
    """By site. One backward pass per sequence; traces take two more, the second through the first.

    The model computes where it is, and its weights are only read. Activations of a whole pass are in memory, and for
    traces three tensors as large as the sites' weights too. Raises CalibrationError when a gradient is not finite.
    """
    tokens = tokens[: needs.sequences].to(next(model.parameters()).device)
    with evaluating(model), frozen(model):
        found = _slopes(model, anatomy, sites, tokens)
        if needs.curvature:
            traces = _traces(model, [site.name for site in sites], tokens, seed)
            found = {name: replace(value, trace=traces[name]) for name, value in found.items()}
    for name, value in found.items():
        _check(name, all(number is None or math.isfinite(number) for number in (value.output, value.stream, value.trace)))
    return found


def channel_loss(model: Any, anatomy: Anatomy, sites: Sequence[ChannelSite | SublayerSite], tokens: Int[Tensor, "samples length"],
                 needs: LossNeeds) -> dict[str, ChannelLoss]:
    """By site. One backward pass per sequence, in which the gradient of every matrix is added up, in float32, once it is there.

    The model computes where it is, and its weights are only read. In memory are the activations of a whole pass and the gradient
    of one matrix at a time. The sums "vector" and "second" need nothing more; "element" needs a float32 copy of the sites'
    matrices, for the sum of their gradients, and "mixed" another, for that of the squares.
    Raises CalibrationError when a gradient is not finite.
    """
    tokens = tokens[: needs.sequences].to(next(model.parameters()).device)
    parts = {site.name: _parts(anatomy, site) for site in sites}
    with evaluating(model), frozen(model), ExitStack() as stack:
        axes = {part.name: part.axis for several in parts.values() for part in several}  # a fused matrix has several parts
        sums = {name: stack.enter_context(_adding(model.get_submodule(name), axis, needs.channels)) for name, axis in axes.items()}
        for row in tokens:
            with torch.enable_grad():
                (_loss(model, row[None]) / (len(row) - 1)).backward()
    found: dict[str, ChannelLoss] = {}
    for site in sites:
        own = parts[site.name]
        values = {key: _joined(site, [part.gather(sums[part.name].mean(key, len(tokens))) for part in own]) for key in needs.channels}
        _check(site.name, all(map(finite, values.values())))
        found[site.name] = ChannelLoss(**values)
    return found


@torch.no_grad()
def token_weights(model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"],
                  batch: int = 4) -> Float[Tensor, "blocks samples length"]:
    """By block, how much the loss depends on what it gives of every token: the squared norm of the gradient there, that is the trace
    of the token's empirical Fisher information, at most `_EXTREME` times the mean, and scaled to the mean 1.

    One backward pass per sequence, `batch` of them together; the model computes where it is, and its weights are only read.
    Raises CalibrationError when a gradient is not finite.
    """
    device = next(model.parameters()).device
    found = torch.zeros(len(anatomy.blocks), *tokens.shape)
    with evaluating(model), frozen(model), ExitStack() as stack:
        slopes: dict[int, Tensor] = {}
        stack.callback(model.get_input_embeddings().register_forward_hook(_begin).remove)
        for depth, block in enumerate(anatomy.blocks):
            stack.callback(model.get_submodule(block.name).register_forward_hook(_slope_into(slopes, depth)).remove)
        for start in range(0, len(tokens), batch):
            rows = slice(start, start + batch)
            with torch.enable_grad():
                _loss(model, tokens[rows].to(device)).backward()
            for depth, squares in slopes.items():
                found[depth, rows] = squares.view(-1, tokens.shape[1]).cpu()
    for block, weights in zip(anatomy.blocks, found, strict=True):
        _check(block.name, finite(weights))
        weights.div_(weights.mean().clamp_min(1e-30)).clamp_(max=_EXTREME)
        weights.div_(weights.mean())
    return found


def _begin(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()  # nothing before it does, so that this is where the graph begins


def _slope_into(slopes: dict[int, Tensor], depth: int) -> Any:
    """A hook on a block: the squared norm of the loss's gradient at what it gives, by token."""
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        value: Tensor = output[0] if isinstance(output, tuple) else output

        def back(gradient: Tensor) -> None:
            slopes[depth] = gradient.float().square().sum(-1)

        value.register_hook(back)
    return hook


def _joined(site: ChannelSite | SublayerSite, parts: list[Tensor]) -> Tensor:
    """A channel has weights in every part; the outputs of a branch's matrices are channels of their own."""
    return torch.cat(parts) if isinstance(site, SublayerSite) else torch.stack(parts).sum(0)


def known_loss(model: Any, anatomy: Anatomy, sites: Sequence[Site], tokens: Int[Tensor, "samples length"], needs: LossNeeds,
               seed: int = 0) -> dict[str, LossStats] | dict[str, ChannelLoss]:
    """Either of the two, as `needs` says: by the matrix that is solved for a site (of channels, their consumer), or by branch."""
    solved = {site.name: site.consumer if isinstance(site, ChannelSite) else site.name for site in sites}
    if needs.channels:
        found = channel_loss(model, anatomy, [site for site in sites if not isinstance(site, LinearSite)], tokens, needs)
        return {solved[name]: value for name, value in found.items()}
    matrices = [site for site in anatomy.sites("linear") if isinstance(site, LinearSite) and site.name in solved.values()]
    return loss_stats(model, anatomy, matrices, tokens, needs, seed)


def _check(name: str, fine: bool) -> None:
    if not fine:
        raise CalibrationError(f"{name}: the gradient of the loss is not finite. The model overflows in this dtype or its "
                               "weights are damaged; try --dtype float32.")


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
            self.sum += total(gradient.float().square().sum(-1) * size)

        value.register_hook(back)


def _slopes(model: Any, anatomy: Anatomy, sites: Sequence[LinearSite], tokens: Tensor) -> dict[str, LossStats]:
    watched = {name: _Watched() for name in [*(site.name for site in sites), *(block.name for block in anatomy.blocks)]}

    with ExitStack() as stack:
        stack.callback(model.get_input_embeddings().register_forward_hook(_begin).remove)
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
            totals[index] += total(product * sign) / len(tokens)
    return dict(zip(names, totals, strict=True))


@dataclass(frozen=True)
class _Part:
    """The weights that a site's channels have in one matrix."""

    name: str  # of the matrix
    axis: Literal[0, 1]  # rows (0) or columns of it
    offset: int  # the first
    count: int  # channels
    each: int  # rows or columns per channel

    def gather(self, values: Float[Tensor, "rows"]) -> Float[Tensor, "channels"]:
        """From a number for every row, or column, to one for every channel."""
        return values[self.offset : self.offset + self.count * self.each].view(self.count, self.each).sum(1)


def _parts(anatomy: Anatomy, site: ChannelSite | SublayerSite) -> list[_Part]:
    if isinstance(site, SublayerSite):
        return [_Part(matrix.name, 0, 0, matrix.shape[0], 1) for matrix in anatomy.sites("linear")
                if isinstance(matrix, LinearSite) and matrix.branch == site.name]
    return [*(_Part(producer.name, 0, producer.offset, site.count, producer.rows) for producer in site.producers),
            _Part(site.consumer, 1, 0, site.count, site.width)]


class _Sums:
    """Sums over the rows, or columns, of one matrix; they grow with every gradient of it."""

    def __init__(self, module: Any, axis: Literal[0, 1], wanted: Sequence[ChannelSum]) -> None:
        self._module, self._axis = module, axis
        empty = torch.zeros_like(module.weight, dtype=torch.float32, requires_grad=False)
        self._vector = self._along(empty)
        self._second = self._vector.clone()
        self._slope = empty if {"element", "mixed"} & set(wanted) else None
        self._square = empty.clone() if "mixed" in wanted else None

    def _along(self, values: Tensor) -> Tensor:
        return module_layout(self._module, values).sum(1 - self._axis)

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Called whenever a gradient of `weight` is there."""
        assert weight.grad is not None
        gradient, weight.grad = weight.grad.float(), None
        if self._slope is not None:
            self._slope += gradient
        if self._square is not None:
            self._square += gradient.square()
        product = gradient.mul_(weight)
        self._vector += self._along(product)
        self._second += self._along(product.square_())

    @torch.no_grad()
    def mean(self, key: ChannelSum, sequences: int) -> Tensor:
        """One of the sums, by row or column."""
        if key in ("vector", "second"):
            return (self._vector if key == "vector" else self._second).cpu() / sequences
        assert self._slope is not None
        change = self._slope * self._module.weight / sequences
        if key == "mixed":
            assert self._square is not None
            change -= self._module.weight.float().square() * self._square / (2 * sequences)
        return self._along(change.abs_()).cpu()


@contextmanager
def _adding(module: Any, axis: Literal[0, 1], wanted: Sequence[ChannelSum]) -> Iterator[_Sums]:
    """Gradients are asked of the module's weight for the duration; what it had as its gradient is put back."""
    weight, sums = module.weight, _Sums(module, axis, wanted)
    before, weight.grad = weight.grad, None
    weight.requires_grad_(True)
    handle = weight.register_post_accumulate_grad_hook(sums.take)
    try:
        yield sums
    finally:
        handle.remove()
        weight.grad = before
