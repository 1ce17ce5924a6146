"""Finished blocks on disk, so that an interrupted run can be continued with the same result."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import RecipeError
from .files import put_in_place, put_text, readable
from .result import SiteRecord

__all__ = ["Journal"]

_OURS = ("identity", "step-*", "search-*")  # one of these is in every folder that a run has begun to fill


@dataclass(frozen=True)
class Journal:
    """A folder with one file per finished block, and what was measured on this machine; whatever is kept first creates it."""

    folder: Path
    again: bool = False  # whether what an earlier run has kept gives way to this one, once it has something to keep

    @property
    def ours(self) -> bool:
        """Whether the folder is not there, is empty, or was begun by a run."""
        return not self.folder.exists() or not any(self.folder.iterdir()) or any(any(self.folder.glob(name)) for name in _OURS)

    @property
    def begun(self) -> int:
        """When a run last began with what is here, in nanoseconds; 0 where none has."""
        mark = self.folder / "identity"
        return mark.stat().st_mtime_ns if mark.is_file() else 0

    def begin(self, identity: str) -> None:
        """Refuse to continue another run, or to write into a folder that none has begun. Raises RecipeError."""
        mark = self.folder / "identity"
        if not self.ours:
            raise RecipeError(f"{self.folder}: is not unfinished work of Prunus. Move it away.")
        if mark.is_file():
            if mark.read_text() != identity:
                raise RecipeError(f"{self.folder}: holds another run (other model, recipe, text or dtype). "
                                  "Use --overwrite to discard it.")
            os.utime(mark)
        elif self.folder.exists():
            self._mark(identity)

    def done(self, stage: int) -> frozenset[int]:
        """The blocks of a stage that are finished."""
        files = self.folder.glob(f"stage-{stage}-block-*.safetensors")
        return frozenset(int(file.stem.rpartition("-")[2]) for file in files if _whole(file))

    def keep(self, identity: str, stage: int, block: int, tensors: Mapping[str, Tensor],
             records: list[SiteRecord], remarks: Sequence[str] = ()) -> None:
        """Store a finished block; a crash leaves the whole file or none."""
        from safetensors.torch import save_file

        self._mark(identity)
        target = self._file(stage, block)
        draft = target.with_suffix(".tmp")
        data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(data, draft, metadata={"records": json.dumps([asdict(record) for record in records]),
                                          "remarks": json.dumps(list(remarks))})
        put_in_place(draft, target, wait=False)  # mostly it is deleted before the disk has to know of it

    def recall(self, stage: int, block: int) -> tuple[dict[str, Tensor], list[SiteRecord], list[str]]:
        """What `keep` stored."""
        from safetensors import safe_open

        with safe_open(self._file(stage, block), framework="pt") as file:
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = file.metadata()
        return tensors, [SiteRecord(**record) for record in json.loads(said["records"])], json.loads(said["remarks"])

    def measured(self, identity: str, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` gives, which may differ from time to time: measured once, and the same ever after."""
        file = self.folder / f"{name}.json"
        known = readable(file)
        if isinstance(known, dict):
            return known
        found = measure()
        self._mark(identity)
        put_text(file, json.dumps(found))
        return found

    def discard(self) -> None:
        """Remove the folder, if a run has begun it."""
        if self.ours:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self, identity: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "identity").is_file():
            put_text(self.folder / "identity", identity)

    def _file(self, stage: int, block: int) -> Path:
        return self.folder / f"stage-{stage}-block-{block}.safetensors"


def _whole(file: Path) -> bool:
    """Whether a file is as long as its head says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False
