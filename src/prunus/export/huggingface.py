"""A plain checkpoint that `transformers` loads: safetensors, config, tokenizer, and the papers that belong to it."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import ExportError
from ..loading import quiet
from ..lookup import find
from ..result import Pruned

__all__ = ["HuggingFace", "check_target", "save"]


@dataclass(frozen=True)
class HuggingFace:
    """safetensors, config.json, tokenizer, recipe.toml, allocation.json, report.json and README.md (the model card)."""

    overwrite: bool = False  # replace files in a folder that is not empty
    shard: str = "1GB"  # largest weight file; a save needs this much memory on top of the model

    def check(self, pruned: Pruned, path: Path) -> None:
        check_target(path, self.overwrite, model_bytes(pruned.model))

    def save(self, pruned: Pruned, path: Path) -> None:
        self.check(pruned, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            model: Any = pruned.model
            with quiet():
                model.save_pretrained(draft, max_shard_size=self.shard)
                if pruned.tokenizer is not None:
                    pruned.tokenizer.save_pretrained(draft)
            _papers(pruned, draft)
            draft.chmod(0o755)
            for file in draft.iterdir():
                file.chmod(0o644)  # safetensors writes files that only their owner can read
            _publish(draft, path)
        except (OSError, SafetensorError) as error:
            raise ExportError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}.") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def save(pruned: Pruned, path: str | Path, format: str = "huggingface", overwrite: bool = False) -> None:
    """Write a pruned model to `path` as files of the given format. Raises ExportError before a byte is written."""
    find("export", format)(overwrite=overwrite).save(pruned, Path(path).absolute())


def model_bytes(model: Any) -> int:
    """The size of the weights on disk; tied weights count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def check_target(path: Path, overwrite: bool, needed: int) -> None:
    """Refuse a folder that is in use or a disk that is full. Raises ExportError."""
    if path.exists() and not path.is_dir():
        raise ExportError(f"output '{path}': is a file, expected a folder.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ExportError(f"output '{path}': exists and is not empty. Choose another folder or say --overwrite.")
    home = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not os.access(home, os.W_OK):
        raise ExportError(f"output '{path}': no permission to write in {home}.")
    free = shutil.disk_usage(home).free
    if free < 1.05 * needed:
        raise ExportError(f"output '{path}': needs {needed / 2**20:.0f} MiB, but {home} has {free / 2**20:.0f} MiB free.")


def _papers(pruned: Pruned, folder: Path) -> None:
    report = pruned.report
    allocation = json.dumps([dict(stage) for stage in report.allocation], indent=2)
    (folder / "recipe.toml").write_text(report.recipe.to_toml(), encoding="utf-8")
    (folder / "allocation.json").write_text(allocation + "\n", encoding="utf-8")
    (folder / "report.json").write_text(find("report", "json")().render(report), encoding="utf-8")
    (folder / "README.md").write_text(find("report", "markdown")().render(report), encoding="utf-8")


def _publish(draft: Path, path: Path) -> None:
    """Move a finished folder to its place in one step, or its files into the folder that is to be overwritten."""
    if not path.exists() or not any(path.iterdir()):
        if path.exists():
            path.rmdir()
        draft.rename(path)
        return
    for stale in (*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")):
        stale.unlink()
    for file in sorted(draft.iterdir()):
        if file.is_dir():
            shutil.rmtree(path / file.name, ignore_errors=True)
        file.replace(path / file.name)
