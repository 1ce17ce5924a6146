"""How the loss depends on every matrix or channel: backward passes through the whole model, from which a few numbers stay."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import CalibrationError
from ..sites import Anatomy, ChannelSite, LinearSite, Site, SublayerSite
from ..stats import ChannelLoss, LossNeeds, LossStats, finite
from ..traits import module_layout
from .blocks import evaluating

__all__ = ["channel_loss", "known_loss", "loss_stats"]


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
        _check(name, all(number is None or math.isfinite(number) for number in (value.output, value.stream, value.trace)))
    return found


def channel_loss(model: Any, anatomy: Anatomy, sites: Sequence[ChannelSite | SublayerSite], tokens: Int[Tensor, "samples length"],
                 needs: LossNeeds) -> dict[str, ChannelLoss]:
    """By site. One backward pass per sequence, in which every gradient is added up, in float32, as soon as it is there.

    The model computes where it is, and its weights are only read. In memory are the activations of a whole pass, the gradient of
    one matrix at a time, one float32 copy of the sites' matrices (the sum of their gradients), and with curvature a second one.
    Raises CalibrationError when a gradient is not finite.
    """
    tokens = tokens[: needs.sequences].to(next(model.parameters()).device)
    parts = {site.name: _parts(anatomy, site) for site in sites}
    modules: dict[str, Any] = {name: model.get_submodule(name) for several in parts.values() for name, _ in several}
    with evaluating(model), _frozen(model), ExitStack() as stack:
        sums = {name: stack.enter_context(_adding(module.weight, needs.curvature)) for name, module in modules.items()}
        for row in tokens:
            with torch.enable_grad():
                (_loss(model, row[None]) / (len(row) - 1)).backward()
    found = {site.name: _summed([(modules[name], sums[name], gather) for name, gather in parts[site.name]], len(tokens),
                                torch.cat if isinstance(site, SublayerSite) else _added) for site in sites}
    for name, value in found.items():
        _check(name, all(sums is None or finite(sums) for sums in (value.vector, value.element, value.second, value.mixed)))
    return found


def known_loss(model: Any, anatomy: Anatomy, sites: Sequence[Site], tokens: Int[Tensor, "samples length"], needs: LossNeeds,
               seed: int = 0) -> dict[str, LossStats] | dict[str, ChannelLoss]:
    """Either of the two, as `needs` says: by the matrix that is solved for a site (of channels, their consumer), or by branch."""
    if needs.channels:
        whole = [site for site in sites if not isinstance(site, LinearSite)]
        found = channel_loss(model, anatomy, whole, tokens, needs)
        return {site.consumer if isinstance(site, ChannelSite) else site.name: found[site.name] for site in whole}
    solved = {site.consumer if isinstance(site, ChannelSite) else site.name for site in sites}
    matrices = [site for site in anatomy.sites("linear") if isinstance(site, LinearSite) and site.name in solved]
    return loss_stats(model, anatomy, matrices, tokens, needs, seed)


def _check(name: str, fine: bool) -> None:
    if not fine:
        raise CalibrationError(f"{name}: the gradient of the loss is not finite. The model overflows in this dtype or its "
                               "weights are damaged; try --dtype float32.")


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


_Gather = Callable[[Float[Tensor, "out in"]], Float[Tensor, "channels"]]  # the sum over a channel's weights in one matrix


def _parts(anatomy: Anatomy, site: ChannelSite | SublayerSite) -> list[tuple[str, _Gather]]:
    """The matrices that a site's channels have weights in, by path."""
    if isinstance(site, SublayerSite):
        return [(matrix.name, lambda values: values.sum(1)) for matrix in anatomy.sites("linear") if matrix.branch == site.name]
    count, width = site.count, site.width

    def rows(offset: int, each: int) -> _Gather:
        return lambda values: values[offset : offset + count * each].sum(1).view(count, each).sum(1)

    return [*((producer.name, rows(producer.offset, producer.rows)) for producer in site.producers),
            (site.consumer, lambda values: values.sum(0).view(count, width).sum(1))]


def _added(sums: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(sums)).sum(0)


class _Gradients:
    """The sum of one matrix's gradients over sequences and, if wanted, that of their squares."""

    def __init__(self, weight: Tensor, squares: bool) -> None:
        self.sum = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
        self.squares = torch.zeros_like(self.sum) if squares else None

    def take(self, weight: Tensor) -> None:
        """Called whenever the gradient of `weight` is there."""
        assert weight.grad is not None
        gradient, weight.grad = weight.grad.float(), None
        self.sum += gradient
        if self.squares is not None:
            self.squares += gradient.square()


@contextmanager
def _adding(weight: Any, squares: bool) -> Iterator[_Gradients]:
    """Gradients are asked of `weight` for the duration; what it had as its gradient is put back."""
    sums, before = _Gradients(weight, squares), weight.grad
    weight.grad = None
    weight.requires_grad_(True)
    handle = weight.register_post_accumulate_grad_hook(sums.take)
    try:
        yield sums
    finally:
        handle.remove()
        weight.grad = before


@torch.no_grad()
def _summed(parts: Sequence[tuple[Any, _Gradients, _Gather]], count: int, join: Callable[[list[Tensor]], Tensor]) -> ChannelLoss:
    """One site's sums, from the gradients of `count` sequences; `join` makes one of those of its matrices."""
    totals: list[list[Tensor]] = [[], [], [], []]
    for module, sums, gather in parts:
        weight = module.weight.float()
        first = weight * sums.sum / count
        values = [first, first.abs()]
        if sums.squares is not None:
            second = weight.square() * sums.squares / count
            values += [second, (first - second / 2).abs()]
        for total, value in zip(totals, values, strict=False):
            total.append(gather(module_layout(module, value)).cpu())
    return ChannelLoss(*(join(total) for total in totals if total))
