"""Where blocks compute and where activations wait."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..traits import model_bytes

__all__ = ["Placement", "together"]

_TOKENS = 1024  # per pass through a block: enough for full speed, little enough for the activations of wide blocks


def together(length: int) -> int:
    """How many sequences of `length` tokens pass through a block together."""
    return max(1, _TOKENS // max(1, length))


@dataclass(frozen=True)
class Placement:
    """One block at a time visits `device`; the hidden states of all sequences wait where `activations` says."""

    device: str = "cpu"  # where blocks compute: cpu, cuda, cuda:1, mps
    activations: Literal["memory", "device", "disk"] = "memory"  # disk: a memory-mapped file, removed afterwards

    def __post_init__(self) -> None:
        if self.activations not in ("memory", "device", "disk"):
            raise RecipeError(f"placement.activations = {self.activations!r}: expected 'memory', 'device' or 'disk'.")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise RecipeError(f"device '{self.device}' cannot be used here: {reason}. Use --device cpu.") from None

    @classmethod
    def of(cls, model: nn.Module) -> "Placement":
        """Where a whole model is."""
        return cls(str(next(model.parameters()).device))

    def fits(self, model: nn.Module) -> bool:
        """Whether a whole model fits on the device, with half as much again for the work."""
        if not self.device.startswith("cuda"):
            return True
        return torch.cuda.mem_get_info(self.device)[0] > 1.5 * model_bytes(model)

    @contextmanager
    def hidden(self, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
        """An uninitialised tensor for the hidden states of all sequences."""
        if self.activations != "disk":
            yield torch.empty(shape, dtype=dtype, device=self.device if self.activations == "device" else "cpu")
            return
        with tempfile.TemporaryDirectory(prefix="prunus-activations-") as folder:
            size = torch.Size(shape).numel()
            file = str(Path(folder) / "hidden.bin")
            yield torch.from_file(file, shared=True, size=max(1, size), dtype=dtype)[:size].view(shape)

    @contextmanager
    def visiting(self, block: nn.Module) -> Iterator[None]:
        """`block` on the computing device for the duration, and back where it was."""
        home = next(block.parameters()).device
        moved = home != torch.device(self.device) and home.type != torch.device(self.device).type
        if moved:
            block.to(self.device)
        try:
            yield
        finally:
            if moved:
                block.to(home)
