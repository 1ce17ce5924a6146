"""Files and folders that are there as a whole or not at all, and hashes of their content or of what decides it."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ExportError

__all__ = [
    "check_place", "fingerprint", "giving_way", "intact", "keep_tensors", "put_in_place", "put_text", "put_texts", "readable",
    "whole_folder", "working_alone"]


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


def put_text(file: Path, text: str) -> None:
    """Write a text file, which a crash leaves as it was or whole."""
    draft = file.with_name(f".{file.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    put_in_place(draft, file)


def check_place(folder: Path, in_the_way: str) -> Path:
    """Refuse a file where a folder is to be, one in which nobody may write, and, unless `in_the_way` is empty, one that holds something,
    of which that is said. Gives the folder that is there already, it or one above it. Raises ExportError."""
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"output '{folder}': is a file, expected a folder.")
    if in_the_way and folder.is_dir() and any(folder.iterdir()):
        raise ExportError(f"output '{folder}': {in_the_way}")
    home = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(home, os.W_OK):
        raise ExportError(f"output '{folder}': no permission to write in {home}.")
    return home


@contextmanager
def working_alone(folder: Path) -> Iterator[None]:
    """No other process that asks for it works in the folder meanwhile, which is made where it is missing, and goes again if nothing
    was put into it. The system ends it with this process, whatever happens. Raises ExportError."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written: {error.strerror or error}.") from error
    try:
        _lock(place, folder)
        yield
    finally:
        os.close(place)
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _lock(place: int, folder: Path) -> None:
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExportError(f"{folder}: another process works in it. Wait until it ends, end it, or name another folder.") from None
    except OSError:
        return  # this file system has no locks


@contextmanager
def giving_way(paths: Sequence[Path], begun: Callable[[], bool]) -> Iterator[None]:
    """What is at these paths, all in one folder, is away, and comes back where this ends in an error before anything that is to take its
    place has `begun`."""
    there = [path for path in paths if path.exists()]
    if not there:
        yield
        return
    with tempfile.TemporaryDirectory(dir=there[0].parent, prefix=".earlier-") as place:
        for path in there:
            path.rename(Path(place) / path.name)
        try:
            yield
        except BaseException:
            if not begun():
                for path in there:
                    (Path(place) / path.name).replace(path)
            raise


def put_texts(folder: Path, texts: Mapping[str, str]) -> tuple[Path, ...]:
    """Write text files by their names into a folder, which is made where it is missing. Raises ExportError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            put_text(folder / name, text)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written: {error.strerror or error}.") from error
    return tuple(folder / name for name in texts)


def keep_tensors(file: Path, tensors: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Write a safetensors file and, beside it, a note with its hash and some facts, which are given back.

    A crash leaves no note, or a whole file and a whole note; two processes that write the same do not meet in a draft.
    """
    from safetensors.torch import save_file

    note = file.with_name(f"{file.name}.json")
    drafts = [path.with_name(f"{path.name}.{os.getpid()}.tmp") for path in (file, note)]
    save_file(dict(tensors), drafts[0])
    found = {"file": file.name, "sha256": _digest(drafts[0]), **facts}
    drafts[1].write_text(json.dumps(found), encoding="utf-8")
    note.unlink(missing_ok=True)
    put_in_place(drafts[0], file)
    put_in_place(drafts[1], note)
    return found


def intact(file: Path) -> dict[str, Any] | None:
    """The note of a file that `keep_tensors` wrote, if the file is still what it was then."""
    note = file.with_name(f"{file.name}.json")
    found = readable(note)
    return found if isinstance(found, dict) and file.exists() and found.get("sha256") == _digest(file) else None


def readable(file: Path) -> Any:
    """What a JSON file says; None when there is none, or it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


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
