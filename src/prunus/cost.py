"""What a run costs, every auxiliary cost counted: time, tokens through the model, memory, energy and disk."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .energy import Energy, counters
from .environment import Clock, peak_bytes
from .sites import Anatomy, SublayerSite

__all__ = ["Cost", "Meter", "metered"]


@dataclass(frozen=True)
class Cost:
    """Of a whole run."""

    seconds: Mapping[str, float]  # by stage of the work
    tokens: Mapping[str, float] = field(default_factory=dict)  # forwarded, by stage, in passes through the whole dense model
    looks: float = 0.0  # at the whole search text, of all searches
    questions: int = 0  # candidates, or parts of them, that searches asked for
    measurements: int = 0  # numbers that were measured before and after
    host_bytes: int = 0  # the most memory that the process has held, before this run too
    device_bytes: int | None = None  # the most that its tensors have held on a GPU; None without one
    joules: Mapping[str, float] = field(default_factory=dict)  # of the whole machine while it ran, by part; empty: not readable here
    files: Mapping[str, int] = field(default_factory=dict)  # bytes of the weights as they were saved, by file


class Meter:
    """Counts tokens and joules while a run goes on.

    A token counts where the product that ends a branch has computed it, for as much of the dense model as that branch is: so what is
    passed over, kept from before, or gone does not count. A pass that ends early counts as far as its branches came to their ends.
    """

    def __init__(self, clock: Clock, device: str) -> None:
        self.clock, self.device = clock, torch.device(device)
        self.tokens: dict[str, float] = {}
        self._energy = Energy(counters(device))
        self._stack = ExitStack()
        self._whole = 0

    def follow(self, model: Any, anatomy: Anatomy) -> None:
        """Watch the branches of a model, and no longer those that were watched; the first model is the dense one."""
        self._stack.close()
        branches = [site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite)]
        self._whole = self._whole or sum(site.size for site in branches)
        for site in branches:
            module = model.get_submodule(site.output)
            self._stack.callback(module.register_forward_hook(_Count(self, site.size / self._whole)).remove)

    def close(self) -> None:
        """Watch nothing any more."""
        self._stack.close()

    def count(self, tokens: float) -> None:
        """So many tokens went through the whole model, in the stage that the clock is in."""
        self.tokens[self.clock.stage] = self.tokens.get(self.clock.stage, 0.0) + tokens
        self._energy.look()

    def cost(self, looks: float, questions: int, measurements: int) -> Cost:
        """So far."""
        self._energy.look(now=True)
        on_gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return Cost(dict(self.clock.seconds), {name: round(count, 1) for name, count in self.tokens.items()}, looks, questions,
                    measurements, peak_bytes(), on_gpu, dict(self._energy.joules))


@contextmanager
def metered(clock: Clock, device: str) -> Iterator[Meter]:
    """A meter that leaves no trace in the model."""
    meter = Meter(clock, device)
    try:
        yield meter
    finally:
        meter.close()


class _Count:
    """Tells a meter of the tokens that a matrix has multiplied."""

    def __init__(self, meter: Meter, share: float) -> None:
        self.meter, self.share = meter, share

    def __call__(self, module: Any, given: tuple[Any, ...], gives: Tensor) -> None:
        self.meter.count(self.share * gives.shape[:-1].numel())

    def __deepcopy__(self, memory: Any) -> "_Count":
        return self  # a copy of the model counts with it
