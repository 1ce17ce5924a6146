"""The documents of a task, from files in the place of the hub: what the harness would download, as it would find it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..calibration.corpus import rows_of
from ..errors import CorpusError

__all__ = ["Documents", "local", "of_folder", "settings_of"]

_FILES = {  # the hub's name of a split: how the names of its files begin
    "train": ("train", "sample"), "validation": ("valid", "dev"), "test": ("test",), "dev": ("dev",)}
_OTHER = {"mmlu_no_train": "mmlu", "openai_humaneval": "humaneval", "truthful_qa": "truthfulqa"}  # folders of data sets
_COLLECTIONS = ("ai2_arc", "super_glue")  # data sets that are several, each of which has a folder
_SUBSET = ("subject", "UID", "config")  # columns that say which part of a data set a row belongs to
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Documents:
    """The splits of one task that are there."""

    folder: Path
    files: Mapping[str, Path]  # by split
    splits: Mapping[str, Any]  # by split, datasets.Dataset


def local(config: Mapping[str, Any]) -> Documents | None:
    """The documents of a task with this configuration in the folder that PRUNUS_DATA names; None where it has none.

    The folder is called as the task, as its data set on the hub, or as the part of it that the task is about; where rows say which
    part they belong to, those of others are left out. Raises CorpusError when a file is there and cannot be used.
    """
    base = os.environ.get("PRUNUS_DATA")
    names = _names(config)
    folder = next((Path(base) / name for name in names if base and (Path(base) / name).is_dir()), None)
    asked = {name: str(config[name]) for name in _SPLITS if config.get(name)}
    return None if folder is None else of_folder(folder, tuple(dict.fromkeys(asked.values())), config.get("dataset_name"))


def _names(config: Mapping[str, Any]) -> list[str]:
    """What the folder may be called, in the order that they are looked for."""
    base, part = str(config.get("dataset_path") or "").rpartition("/")[2], str(config.get("dataset_name") or "")
    found = [str(config["task"]), *([part] if base in _COLLECTIONS else []), f"{base}_{part}", base, _OTHER.get(base, "")]
    return [name.lower().replace("-", "_") for name in found if name.strip("_")]


def of_folder(folder: Path, splits: tuple[str, ...] = tuple(_FILES), part: str | None = None) -> Documents:
    """Some of the splits that a folder of JSONL files has. Raises CorpusError."""
    from datasets import Dataset

    files = {split: file for split in splits if (file := _file(folder, split)) is not None}
    if not files:
        found = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise CorpusError(f"folder {folder}: expected a JSONL file of {' or '.join(splits)}, found {found}.")
    made = {}
    for split, file in files.items():
        rows = _of_part(_rows(file, file.stat().st_mtime_ns), part)
        if not rows:
            raise CorpusError(f"file {file}: it has no example{f' of {part}' if part else ''}.")
        try:
            made[split] = Dataset.from_list(list(rows))
        except (ValueError, TypeError, OverflowError) as error:  # of pyarrow, whose errors are ValueErrors
            raise CorpusError(f"file {file}: a column has values of several kinds: {' '.join(str(error).split())}") from None
    return Documents(folder, files, made)


def _file(folder: Path, split: str) -> Path | None:
    files = [file for file in sorted(folder.iterdir()) if file.name.endswith((".jsonl", ".jsonl.gz"))]
    return next((file for word in _FILES.get(split, (split,)) for file in files if file.name.startswith(word)), None)


@lru_cache(maxsize=8)
def _rows(file: Path, changed: int) -> tuple[dict[str, Any], ...]:
    """The rows of a file as it was when it was last changed. Raises CorpusError where one is unlike the first."""
    found = rows_of(file)
    for number, row in found:
        if missing := found[0][1].keys() ^ row.keys():
            raise CorpusError(f"file {file}, line {number}: expected the keys {', '.join(found[0][1])}, found {', '.join(row)} (see "
                              f"{', '.join(sorted(missing))}).")
    return tuple(row for _, row in found)


def _of_part(rows: tuple[dict[str, Any], ...], part: str | None) -> tuple[dict[str, Any], ...]:
    column = next((name for name in _SUBSET if rows and name in rows[0]), None)
    return rows if part is None or column is None else tuple(row for row in rows if row[column] == part)


def settings_of(config: Mapping[str, Any], documents: Documents) -> dict[str, Any]:
    """What of a task's configuration these documents change: where they come from, and splits that are not there.

    Raises CorpusError when the documents that are asked about are not there.
    """
    first = next((name for name in ("test_split", "validation_split") if config.get(name) in documents.splits), None)
    if first is None:
        wanted = [str(config[name]) for name in ("test_split", "validation_split") if config.get(name)]
        raise CorpusError(f"task '{config['task']}': {documents.folder} has no {' or '.join(wanted)} split, found "
                          f"{', '.join(file.name for file in documents.files.values())}.")
    columns = set(documents.splits[config[first]].column_names)
    found = {split: rows for split, rows in documents.splits.items() if set(rows.column_names) == columns}  # others fit no prompt
    changed: dict[str, Any] = {name: None for name in _SPLITS if config.get(name) and config[name] not in found}
    if first == "validation_split":
        changed["test_split"] = None
    few = config.get("fewshot_config")
    if isinstance(few, Mapping) and few.get("split") and few["split"] not in found:
        changed["fewshot_config"] = {key: value for key, value in few.items() if key != "split"}
    return {**changed, "custom_dataset": lambda **_: found}
