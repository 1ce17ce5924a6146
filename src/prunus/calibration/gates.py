"""How the loss depends on channels as wholes: its gradient with respect to a factor of 1 on each."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import CalibrationError
from ..silence import gated
from ..sites import ChannelSite
from .blocks import evaluating, frozen

__all__ = ["gate_gradients"]


def gate_gradients(model: Any, sites: Sequence[ChannelSite],
                   losses: Iterable[Callable[[], Float[Tensor, ""]]]) -> dict[str, Float[Tensor, "losses channels"]]:
    """By site, for every loss (of a batch, or of a sequence): its derivative by a factor on what the consumer reads of each channel.

    Their mean square is the diagonal of the empirical Fisher information of masks (Kwon et al. 2022, eq. 6). Raises CalibrationError
    where a loss is not finite.
    """
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    with evaluating(model), frozen(model):
        for index, loss in enumerate(losses):
            gates = {site.name: torch.ones(site.count, requires_grad=True) for site in sites}
            with torch.enable_grad(), gated(model, {site.consumer: gates[site.name].repeat_interleave(site.width) for site in sites}):
                value = loss()
                if not bool(value.isfinite()):
                    raise CalibrationError(f"the loss of batch {index} is {value.item()}. The model overflows in its dtype or its "
                                           "weights are damaged; try --dtype float32.")
                slopes = torch.autograd.grad(value, list(gates.values()))
            for name, slope in zip(gates, slopes, strict=True):
                found[name].append(slope)
    return {name: torch.stack(rows) for name, rows in found.items()}
