"""A plain checkpoint that `transformers` loads: safetensors, config, tokenizer, and the papers that belong to it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..budget import Allocation
from ..checkpoint import check_target, folder, save_model
from ..figures import figures
from ..lookup import find
from ..recipe import Recipe
from ..result import Pruned
from ..search.plan import SearchRecord
from ..traits import model_bytes
from . import Savable

__all__ = ["HuggingFace", "save", "write_shares"]


@dataclass(frozen=True)
class HuggingFace:
    """safetensors, config.json, tokenizer, recipe.toml, allocation.json, report.json, README.md (the model card), and the
    numbers and plots of allocations and searches.
    """

    overwrite: bool = False  # replace files in a folder that is not empty
    shard: str = "1GB"  # largest weight file; a save needs this much memory on top of the model

    def check(self, pruned: Savable, path: Path) -> None:
        check_target(path, self.overwrite, model_bytes(pruned.model))

    def save(self, pruned: Savable, path: Path) -> None:
        self.check(pruned, path)
        with folder(path) as draft:
            own_code = save_model(pruned.model, pruned.tokenizer, draft, self.shard)
            if isinstance(pruned, Pruned):
                _papers(pruned, draft, own_code)


def save(pruned: Savable, path: str | Path, format: str = "huggingface", overwrite: bool = False) -> None:
    """Write a pruned model to `path` as files of the given format. Raises ExportError before a byte is written."""
    find("export", format)(overwrite=overwrite).save(pruned, Path(path).absolute())


def _papers(pruned: Pruned, folder: Path, own_code: bool) -> None:
    files = {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}
    report = replace(pruned.report, cost=replace(pruned.report.cost, files=files))
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
