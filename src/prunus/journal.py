"""Finished blocks on disk, so that an interrupted run can be continued with the same result."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import RecipeError
from .files import put_in_place, put_text, readable
from .result import SiteRecord

__all__ = ["Journal"]


@dataclass(frozen=True)
class Journal:
    """A folder with one file per finished block, and what was measured on this machine; whatever is kept first creates it."""

    folder: Path

    def begin(self, identity: str) -> None:
        """Refuse to continue another run. Raises RecipeError."""
        mark = self.folder / "identity"
        if mark.is_file() and mark.read_text() != identity:
            raise RecipeError(f"{self.folder}: holds another run (other model, recipe, text or dtype). "
                              "Use --overwrite to discard it.")

    def done(self, stage: int) -> frozenset[int]:
        """The blocks of a stage that are finished."""
        files = self.folder.glob(f"stage-{stage}-block-*.safetensors")
        return frozenset(int(file.stem.rpartition("-")[2]) for file in files if _whole(file))

    def keep(self, identity: str, stage: int, block: int, tensors: Mapping[str, Tensor],
             records: list[SiteRecord]) -> None:
        """Store a finished block; a crash leaves the whole file or none."""
        from safetensors.torch import save_file

        self._mark(identity)
        target = self._file(stage, block)
        draft = target.with_suffix(".tmp")
        data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(data, draft, metadata={"records": json.dumps([asdict(record) for record in records])})
        put_in_place(draft, target, wait=False)  # mostly it is deleted before the disk has to know of it

    def recall(self, stage: int, block: int) -> tuple[dict[str, Tensor], list[SiteRecord]]:
        """What `keep` stored."""
        from safetensors import safe_open

        with safe_open(self._file(stage, block), framework="pt") as file:
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            records = [SiteRecord(**record) for record in json.loads(file.metadata()["records"])]
        return tensors, records

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
        """Remove the folder."""
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
