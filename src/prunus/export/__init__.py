"""Formats: a result as files. One file each; the file name is the name."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["Format", "Savable"]


@runtime_checkable
class Savable(Protocol):
    """A model and its tokenizer, pruned just now or loaded from a folder."""

    @property
    def model(self) -> Any:
        """Of transformers."""
        ...

    @property
    def tokenizer(self) -> Any:
        """None where there is none."""
        ...


@runtime_checkable
class Format(Protocol):
    """Writes a pruned model so that other programs load it.

    A frozen dataclass whose fields are its settings; one of them is `overwrite`.
    `check` refuses, with ExportError, before a byte is written;
    `save` leaves either the whole result or nothing new at `path`.
    """

    def check(self, pruned: Savable, path: Path) -> None:
        """Refuse what the format cannot express or the disk cannot hold."""
        ...

    def save(self, pruned: Savable, path: Path) -> None:
        """Write the files."""
        ...
