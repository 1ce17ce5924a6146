"""Folders that `transformers` opens: where they may be written, and how weights and their config get there."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import ExportError
from .files import check_place, whole_folder
from .loading import quiet
from .modelling import MODELLING, code, plain_config, shaped_config
from .storage import QUANTISATION

__all__ = ["DRAWN", "STALE", "check_apart", "check_no_search", "check_target", "folder", "save_model"]

# of an earlier result in the same folder
DRAWN = ("allocation-*.png", "search-*.png", "search.csv")  # with shares
STALE = (*DRAWN, "*.safetensors", "*.safetensors.index.json", "supernet.json", "seen.json", "point.json", MODELLING, QUANTISATION,
         "recipe.toml", "report.json", "allocation.json", "allocation.csv", "README.md")
_OF_SEARCH = ("front.json", "trials.jsonl", "fits", "trained")  # the last two are there before the others are
# one of these is in every folder that is written, whatever the command
_MARKS = ("config.json", "allocation.json", "branches.csv", "front.csv", "latency.json", "levels", *_OF_SEARCH)


def check_apart(path: Path, source: str) -> None:
    """Refuse to write where the model comes from. Raises ExportError."""
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise ExportError(f"output '{path}': is the model itself, which would be lost. Choose another place.")


def check_no_search(path: Path) -> None:
    """Refuse to put a model among the files of a search. Raises ExportError."""
    if any((path / name).exists() for name in _OF_SEARCH):
        raise ExportError(f"output '{path}': holds a search. Choose another folder.")


def check_target(path: Path, overwrite: bool, needed: int) -> None:
    """Refuse a folder that is in use, or, where it may be overwritten, one of something else than models and results; and a disk that is
    full. Raises ExportError."""
    ours = path.is_dir() and any((path / name).exists() for name in _MARKS)
    home = check_place(path, "exists and is not empty. Choose another folder or say --overwrite." if not overwrite else "" if ours else
                       "holds neither a model nor a result of Prunus, so nothing in it is overwritten. Choose another folder.")
    free = shutil.disk_usage(home).free
    if free < 1.05 * needed:
        raise ExportError(f"output '{path}': needs {needed / 2**20:.0f} MiB, but {home} has {free / 2**20:.0f} MiB free.")


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `path` when all went well. Raises ExportError."""
    try:
        with whole_folder(path, STALE) as draft:
            yield draft
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def save_model(model: Any, tokenizer: Any, draft: Path, shard: str = "1GB", own_code: bool = False,
               weights: Mapping[str, Any] | None = None) -> bool:
    """Weights (or others in their stead), config, tokenizer, and a modelling file where no architecture of transformers has the
    model's shape, or where it is asked for; gives back whether there is one."""
    plain = None if own_code else plain_config(model)
    with quiet():  # a family's older names of weights are understood under its own model_type alone
        model.save_pretrained(draft, state_dict=weights, max_shard_size=shard, save_original_format=plain is not None)
        if plain is None:
            file = draft / "config.json"
            data = shaped_config(model, json.loads(file.read_text(encoding="utf-8")))
            (draft / MODELLING).write_text(code(model), encoding="utf-8")
            file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        elif plain[0] is not model.config:
            plain[0].save_pretrained(draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
    return plain is None
