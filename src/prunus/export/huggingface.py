"""A plain checkpoint that `transformers` loads: safetensors, config, tokenizer, and the papers that belong to it."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..budget import Allocation
from ..errors import ExportError
from ..figures import figures
from ..files import whole_folder
from ..loading import quiet
from ..lookup import find
from ..modelling import MODELLING, code, plain_config, shaped_config
from ..recipe import Recipe
from ..result import Pruned
from ..search.plan import SearchRecord

__all__ = ["HuggingFace", "check_target", "save", "write_shares"]

_STALE = ("*.safetensors", "*.safetensors.index.json", "*.png", "search.csv")  # of an earlier result in the same folder


@dataclass(frozen=True)
class HuggingFace:
    """safetensors, config.json, tokenizer, recipe.toml, allocation.json, report.json, README.md (the model card), and the
    numbers and plots of allocations and searches.
    """

    overwrite: bool = False  # replace files in a folder that is not empty
    shard: str = "1GB"  # largest weight file; a save needs this much memory on top of the model

    def check(self, pruned: Pruned, path: Path) -> None:
        check_target(path, self.overwrite, model_bytes(pruned.model))

    def save(self, pruned: Pruned, path: Path) -> None:
        self.check(pruned, path)
        try:
            with whole_folder(path, _STALE) as draft:
                model: Any = pruned.model
                plain = plain_config(model)
                with quiet():  # a family's older names of weights are understood under its own model_type alone
                    model.save_pretrained(draft, max_shard_size=self.shard, save_original_format=plain is not None)
                    _say_shape(model, plain, draft)
                    if pruned.tokenizer is not None:
                        pruned.tokenizer.save_pretrained(draft)
                _papers(pruned, draft, own_code=plain is None)
        except (OSError, SafetensorError) as error:
            raise ExportError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def _say_shape(model: Any, plain: Any, folder: Path) -> None:
    """Let config.json say what shape the model has: in its family's own words, or with a modelling file of its own."""
    if plain is None:
        file = folder / "config.json"
        data = shaped_config(model, json.loads(file.read_text(encoding="utf-8")))
        (folder / MODELLING).write_text(code(model), encoding="utf-8")
        file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    elif plain[0] is not model.config:
        plain[0].save_pretrained(folder)


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


def _papers(pruned: Pruned, folder: Path, own_code: bool) -> None:
    report = pruned.report
    pictures = write_shares(folder, report.recipe, report.allocation, report.searches)
    (folder / "report.json").write_text(find("report", "json")().render(report), encoding="utf-8")
    (folder / "README.md").write_text(find("report", "markdown")(pictures=pictures, own_code=own_code).render(report), encoding="utf-8")


def write_shares(folder: Path, recipe: Recipe, allocations: Sequence[Allocation], searches: Sequence[SearchRecord]) -> tuple[str, ...]:
    """How much every site gives, and why: recipe.toml, allocation.json, and figures, of which the pictures' names are given."""
    (folder / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    (folder / "allocation.json").write_text(json.dumps([dict(stage) for stage in allocations], indent=2) + "\n", encoding="utf-8")
    drawn = figures(allocations, searches)
    for name, content in drawn.items():
        (folder / name).write_bytes(content)
    return tuple(name for name in drawn if name.endswith(".png"))
