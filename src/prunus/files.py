"""Files and folders that are there as a whole or not at all, and hashes of what decides their content."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["fingerprint", "put_in_place", "whole_folder"]


def fingerprint(*parts: str) -> str:
    """A hash of all that decides a result."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]


def put_in_place(draft: Path, target: Path, wait: bool = True) -> None:
    """Give a finished file its name: a crash leaves the whole file or none.

    Without `wait` that is true of a crash of the process; when the machine crashes, the file may be cut off.
    """
    if wait:
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
    draft.replace(target)


@contextmanager
def whole_folder(path: Path, stale: Sequence[str] = ()) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `path` when all went well and vanishes when not.

    Where `path` holds files already, they stay beside the new ones, but those that match a pattern of `stale`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield draft
        draft.chmod(0o755)
        for file in draft.iterdir():
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        _publish(draft, path, stale)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, path: Path, stale: Sequence[str]) -> None:
    """Move a finished folder to its place in one step, or its files into the folder that is to be overwritten."""
    if not path.exists() or not any(path.iterdir()):
        if path.exists():
            path.rmdir()
        draft.rename(path)
        return
    for old in (file for pattern in stale for file in path.glob(pattern)):
        old.unlink()
    for file in sorted(draft.iterdir()):
        if file.is_dir():
            shutil.rmtree(path / file.name, ignore_errors=True)
        file.replace(path / file.name)
