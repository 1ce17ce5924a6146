"""Run a block again and again, each time a matrix further, without computing any product twice."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import RawIOBase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from .blocks import Enough, States, replaced

__all__ = ["AtOnce", "Outputs", "Replay"]


@dataclass
class Replay:
    """Passes through one block, each up to the first matrix whose inputs are still to be collected.

    Between two rounds of passes the caller may write to the matrices whose inputs are complete. What a pass computed
    before it came to an incomplete one is final: what modules and attention gave is kept, and given back when a later
    pass comes to them.
    """

    states: States
    outputs: "Outputs"
    pending: set[str] = field(default_factory=set)  # sites
    caught: dict[str, Tensor] = field(default_factory=dict)  # by site at which the last pass ended: what it reads
    within: list[str] = field(default_factory=list)  # the modules that are computing, the innermost last

    def seen(self, block: nn.Module, depth: int, rows: slice) -> dict[str, Tensor]:
        """What the first pending matrix reads of some sequences; nothing where a pass comes to none."""
        self.caught = {}
        with suppress(Enough):
            self.states.run(block, depth, rows)
        return self.caught

    @contextmanager
    def inside(self, block: nn.Module, name: str, sites: list[str]) -> Iterator[None]:
        """The block at path `name` under replay; `sites` are all its matrices, also those that are not pending."""
        paths = {site.removeprefix(name + ".") for site in sites}
        around = {path[:dot] for path in paths for dot in range(len(path)) if path[dot] == "."}
        with ExitStack() as stack:
            for path in paths | around:
                module = block.get_submodule(path)
                stack.enter_context(replaced(module, self._forward(f"{name}.{path}", module.forward)))
            stack.enter_context(replaced(block, self._watched(block.forward)))
            stack.callback(self.outputs.clear)
            yield

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gave when this pass came here before, or gives now."""
        output = self.outputs.get(self.states.turn, name)
        if output is None:
            self.within.append(name)
            try:
                output = compute()
            finally:
                self.within.pop()
            self.outputs.put(self.states.turn, name, output)
        return output

    def _watched(self, real: Any) -> Any:
        def forward(*positional: Any, **keywords: Any) -> Any:
            with _Attention(self):
                return real(*positional, **keywords)
        return forward

    def _forward(self, name: str, real: Any) -> Any:
        def forward(*positional: Any, **keywords: Any) -> Any:
            if name in self.pending:
                self.caught[name] = positional[0]
                raise Enough
            return self.kept(name, lambda: real(*positional, **keywords))
        return forward


@dataclass
class AtOnce:
    """Passes through one block as a whole, in which the inputs of all pending matrices are seen."""

    states: States
    pending: set[str] = field(default_factory=set)  # sites
    caught: dict[str, Tensor] = field(default_factory=dict)  # by site

    def seen(self, block: nn.Module, depth: int, rows: slice) -> dict[str, Tensor]:
        """What every pending matrix reads of some sequences."""
        self.caught = {}
        self.states.run(block, depth, rows)
        return self.caught

    @contextmanager
    def inside(self, block: nn.Module, name: str, sites: list[str]) -> Iterator[None]:
        """The block at path `name`, of which `sites` are matrices."""
        with ExitStack() as stack:
            for site in sites:
                module = block.get_submodule(site.removeprefix(name + "."))
                stack.callback(module.register_forward_pre_hook(self._hook(site)).remove)
            yield

    def _hook(self, site: str) -> Any:
        def hook(module: nn.Module, positional: tuple[Tensor, ...]) -> None:
            if site in self.pending:
                self.caught[site] = positional[0]
        return hook


class _Attention(TorchFunctionMode):
    """The one product of a block that is not a module's, and not cheap: one per module that computes it."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.replay = replay

    def __torch_function__(self, function: Any, types: Any, positional: Any = (), keywords: Any = None) -> Any:
        if function is not scaled_dot_product_attention or not self.replay.within:
            return function(*positional, **(keywords or {}))
        name = f"{self.replay.within[-1]}.attention"
        return self.replay.kept(name, lambda: function(*positional, **(keywords or {})))


@dataclass
class Outputs:
    """Outputs of the modules of one block, by pass, given back as copies.

    On a GPU they stay there as long as half of what was free lasts, as fetching them would take longer than computing
    them again. Elsewhere they go to a file without a name, whose pages the system can take from memory when it is
    short. What finds no room is not kept, and so computed again.
    """

    device: torch.device
    file: RawIOBase | None
    room: int = 0  # bytes left on a GPU
    _end: int = 0
    _kept: dict[tuple[int, str], list["Tensor | _Stored | None"]] = field(default_factory=dict)
    _single: set[str] = field(default_factory=set)  # modules that give a tensor instead of a tuple

    @classmethod
    @contextmanager
    def on(cls, device: torch.device) -> Iterator["Outputs"]:
        """An empty store for blocks that compute on `device`."""
        if device.type == "cuda":
            yield cls(device, None, torch.cuda.mem_get_info(device)[0] // 2)
            return
        with tempfile.TemporaryFile(prefix="prunus-", buffering=0) as file:
            yield cls(device, cast(RawIOBase, file))

    def put(self, turn: int, name: str, output: Any) -> None:
        """Keep a module's output in one pass (`turn`); those of the modules inside it are no longer needed."""
        parts = output if isinstance(output, tuple) else (output,)
        if not all(part is None or isinstance(part, Tensor) for part in parts):
            return
        stored = [None if part is None else self._store(part) for part in parts]
        if any(part is not None and kept is None for part, kept in zip(parts, stored, strict=True)):
            return
        if not isinstance(output, tuple):
            self._single.add(name)
        self._kept[turn, name] = stored
        for key in [key for key in self._kept if key[0] == turn and key[1].startswith(name + ".")]:
            self.room += sum(_bytes(part) for part in self._kept.pop(key) if isinstance(part, Tensor))

    def get(self, turn: int, name: str) -> Any:
        """A copy of what was put, or None."""
        stored = self._kept.get((turn, name))
        if stored is None:
            return None
        parts = tuple(part.clone() if isinstance(part, Tensor) else part and self._fetch(part) for part in stored)
        return parts[0] if name in self._single else parts

    def clear(self) -> None:
        """Forget everything; the next block writes over the same part of the file."""
        self.room += sum(_bytes(part) for parts in self._kept.values() for part in parts if isinstance(part, Tensor))
        self._kept.clear()
        self._single.clear()
        self._end = 0

    def _store(self, value: Tensor) -> "Tensor | _Stored | None":
        if self.file is None:
            if _bytes(value) > self.room:
                return None
            self.room -= _bytes(value)
            return value.clone()
        stored = _Stored(self._end, value.shape, value.dtype)
        left = _raw(value.cpu().contiguous())
        self.file.seek(self._end)
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError:
            return None  # the disk is full
        self._end = self.file.tell()
        return stored

    def _fetch(self, stored: "_Stored") -> Tensor:
        assert self.file is not None
        value = torch.empty(stored.shape, dtype=stored.dtype)
        left = _raw(value)
        self.file.seek(stored.start)
        while left:
            left = left[self.file.readinto(left) :]
        return value.to(self.device)


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in the file."""

    start: int
    shape: torch.Size
    dtype: torch.dtype


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _raw(value: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, in place."""
    return value.view(-1).view(torch.uint8).numpy().data
