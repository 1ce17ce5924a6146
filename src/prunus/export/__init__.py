"""Formats: a result as files. One file each; the file name is the name."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from ..result import Pruned

__all__ = ["Format"]


@runtime_checkable
class Format(Protocol):
    """Writes a pruned model so that other programs load it.

    A frozen dataclass whose fields are its settings; one of them is `overwrite`.
    `check` refuses, with ExportError, before a byte is written;
    `save` leaves either the whole result or nothing new at `path`.
    """

    def check(self, pruned: Pruned, path: Path) -> None:
        """Refuse what the format cannot express or the disk cannot hold."""
        ...

    def save(self, pruned: Pruned, path: Path) -> None:
        """Write the files."""
        ...
