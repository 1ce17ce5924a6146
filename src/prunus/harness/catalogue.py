"""Tasks by name: those that the harness knows, a few of ours, and those of a folder with a configuration."""

import contextlib
import difflib
import io
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from ..errors import CorpusError, PrunusError, RecipeError, nearest
from ..hub import reachable
from ..sandbox import Execute, passes
from .documents import Documents, local, of_folder, settings_of

__all__ = ["Opened", "opened", "quiet", "unwarned"]

_ROOT = Path(lm_eval.__file__).parent / "tasks"
_SAID = re.compile(r"""^\s*-?\s*["']?(?:task|group|tag)["']?\s*:\s*["']?([\w.:+-]+)["']?\s*$""", re.MULTILINE)
_TAGS = re.compile(r"""^\s*["']?tag["']?\s*:\s*\n((?:\s*-\s*["']?[\w.+-]+["']?\s*\n)+)""", re.MULTILINE)
_USUAL = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "boolq", "openbookqa", "lambada_openai", "sciq", "copa", "mmlu",
          "gsm8k", "humaneval", "truthfulqa_mc1", "truthfulqa_mc2", "blimp", "multi30k-en-de")
_LANGUAGES = {"en": "English", "de": "German", "fr": "French"}
_CONFIGURATIONS = ("task.toml", "task.yaml")
_CODE = ("humaneval", "humaneval_plus")  # tasks whose generated code is run as ours is


@dataclass(frozen=True)
class Opened:
    """A task, or several that make one number."""

    name: str
    tasks: tuple[Any, ...]  # lm_eval.api.task.Task
    by_size: bool = True  # whether every example of several tasks weighs the same, or every task


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that the harness prints is seen: it has bars and warnings of its own."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """The harness warns of nothing, such as every text that is cut; what is printed otherwise is seen."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def opened(name: str, shots: int | None, seed: int, execute: Execute) -> list[Opened]:
    """A task by its name, with its documents; several where the name stands for some that make no number together.

    Raises RecipeError for a name that is not known, CorpusError for documents that are missing or do not fit.
    """
    home = _home(name)
    if home is not None:
        found = [Opened(home.name, (_own(home),))]
    elif translation := re.fullmatch(r"multi30k-(en|de|fr)-(en|de|fr)", name):
        found = [Opened(name, (_translation(name, *translation.groups()),))]
    else:
        found = _known(name, execute)
    for one in found:
        for task in one.tasks:
            _set_shots(task, shots, seed)
    return found


def _home(name: str) -> Path | None:
    """The folder of a task that comes with its configuration."""
    base = os.environ.get("PRUNUS_DATA")
    folders = [Path(name), *([Path(base) / name] if base else [])]
    found = next((folder for folder in folders if any((folder / file).is_file() for file in _CONFIGURATIONS)), None)
    if found is None and os.sep in name:
        raise RecipeError(f"task '{name}': expected a folder with {' or '.join(_CONFIGURATIONS)} and JSONL files beside it, found none.")
    return found


def _own(folder: Path) -> Any:
    """A task of a person's own: the harness's keys, and files beside them."""
    file = next(folder / name for name in _CONFIGURATIONS if (folder / name).is_file())
    config = _configuration(file)
    missing = [key for key in ("doc_to_text", "doc_to_target") if key not in config]
    if missing:
        raise RecipeError(f"{file}: '{missing[0]}' is missing. It says what the {'prompt' if missing[0].endswith('text') else 'answer'} of "
                          "an example is, as in lm-evaluation-harness.")
    documents = of_folder(folder)
    splits = {f"{word}_split": split for word, split in (("training", "train"), ("validation", "validation"), ("test", "test"))
              if split in documents.splits}
    if "test_split" not in splits and "validation_split" not in splits:
        splits = {"test_split": next(iter(documents.splits))}
    kind = "multiple_choice" if "doc_to_choice" in config else "generate_until"
    return _built({"output_type": kind, **splits, **config, "task": str(config.get("task", folder.name))}, documents)


def _configuration(file: Path) -> dict[str, Any]:
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text) if file.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{file}: expected keys and values, found {type(found).__name__}.")
    return found


def _translation(name: str, source: str, target: str) -> Any:
    """Captions of Multi30k, with the prompt and the metrics that the harness has for WMT."""
    base = os.environ.get("PRUNUS_DATA")
    if source == target:
        raise RecipeError(f"task '{name}': expected two languages.")
    if not base or not (Path(base) / "multi30k").is_dir():
        raise CorpusError(f"task '{name}': expected a folder multi30k in PRUNUS_DATA ({base or 'not set'}), with rows of en, de and fr.")
    config = {"task": name, "output_type": "generate_until", "training_split": "train", "validation_split": "validation",
              "fewshot_split": "train", "test_split": "test", "doc_to_target": f" {{{{{target}}}}}",
              "doc_to_text": f"{_LANGUAGES[source]} phrase: {{{{{source}}}}}\n\n{_LANGUAGES[target]} phrase:",
              "metric_list": [{"metric": metric} for metric in ("bleu", "chrf", "ter")],
              "generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0}, "metadata": {"version": 1.0}}
    return _built(config, of_folder(Path(base) / "multi30k"))


def _built(config: dict[str, Any], documents: Documents) -> Any:
    """A task that the harness does not know."""
    settings = {**config, **settings_of(config, documents)}
    return _loaded(str(config["task"]), TaskManager(include_defaults=False), settings, documents)


@cache
def _places() -> dict[str, list[Path]]:
    """The folders in which the harness speaks of a name: a look at all its files as text, as reading them takes many seconds."""
    found: dict[str, list[Path]] = {}
    for file in sorted(_ROOT.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        for name in (*_SAID.findall(text), *re.findall(r"[\w.+-]{2,}", " ".join(_TAGS.findall(text)))):
            found.setdefault(name, []).append(file.parent)
    return found


@cache
def _manager(name: str) -> Any:
    """What the harness knows of the folders in which a name is spoken of; of all, where that is not enough."""
    folders = [*_places().get(name, []), *([_ROOT / name] if (_ROOT / name).is_dir() else [])]
    with quiet():
        near = TaskManager(include_defaults=False, include_path=list(dict.fromkeys(folders))) if folders else None
        if near is not None and _complete(near, name):
            return near
        return TaskManager()


def _complete(manager: Any, name: str) -> bool:
    """Whether a name, and all that it stands for, is known."""
    entry = manager.task_index.get(name)
    return entry is not None and all(_complete(manager, member) for member, _ in _members(entry))


def _members(entry: Any) -> list[tuple[str, dict[str, Any]]]:
    """The names that a group or a tag stands for, with what it changes of each; none of a task."""
    if entry.kind.name == "TAG":
        return [(name, {}) for name in sorted(entry.tags)]
    if entry.kind.name != "GROUP":
        return []
    found: list[tuple[str, dict[str, Any]]] = []
    for member in entry.cfg["task"]:
        if isinstance(member, str):
            found.append((member, {}))
        elif "group" in member and isinstance(member.get("task"), list):  # a group that is written down within
            found += [(inner, {}) if isinstance(inner, str) else (inner["task"], dict(inner)) for inner in member["task"]]
        else:
            found.append((member.get("group", member.get("task")), {key: value for key, value in member.items() if key != "group"}))
    return found


def _known(name: str, execute: Execute) -> list[Opened]:
    """A task of the harness."""
    if not any(name in words for words in (_places(), _groups())):
        close = nearest(name, list(_USUAL)) if difflib.get_close_matches(name, _USUAL, cutoff=0.7) else nearest(name, list(_places()))
        raise RecipeError(f"task '{name}' is unknown{close} lm-evaluation-harness lists all: lm_eval ls tasks. A task of your own is a "
                          "folder with task.toml.")
    manager = _manager(name)
    entry = manager.task_index.get(name)
    if entry is None:
        raise RecipeError(f"task '{name}' is unknown{nearest(name, list(manager.task_index))}")
    leaves = _leaves(manager, name, {})
    tasks = [_task(manager, leaf, changed, execute) for leaf, changed in leaves]
    totals = entry.cfg.get("aggregate_metric_list") if entry.kind.name == "GROUP" else None
    if len(tasks) == 1 or totals:
        return [Opened(name, tuple(tasks), not totals or totals[0].get("weight_by_size", True))]
    return [Opened(leaf, (task,)) for (leaf, _), task in zip(leaves, tasks, strict=True)]


@cache
def _groups() -> set[str]:
    """Names of folders, as tags are called that lists alone speak of."""
    return {folder.name for folder in _ROOT.iterdir() if folder.is_dir()}


def _leaves(manager: Any, name: str, changed: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The tasks that a name stands for in the end."""
    members = _members(manager.task_index[name])
    if not members:
        return [(name, changed)]
    return [leaf for member, own in members for leaf in _leaves(manager, member, {**changed, **own})]


def _task(manager: Any, name: str, changed: dict[str, Any], execute: Execute) -> Any:
    """One task with its documents, local ones where there are some."""
    entry = manager.task_index[name]
    config = {**entry.cfg, **changed, "task": name}
    if config.get("unsafe_code"):
        config |= _checked_code(name, execute)
        changed = {key: value for key, value in config.items() if key not in ("tag", "group")}
    documents = None if entry.kind.name == "PY_TASK" else local(config)
    if documents is None and not reachable():
        raise CorpusError(f"task '{name}': its documents are not in PRUNUS_DATA ({os.environ.get('PRUNUS_DATA') or 'not set'}) and the hub "
                          f"cannot be reached. Put them there as {name}/test.jsonl, with the columns of {config.get('dataset_path')}.")
    settings = {**changed, "task": name, **(settings_of(config, documents) if documents else {})}
    return _loaded(name, TaskManager(include_defaults=False) if config.get("unsafe_code") else manager, settings, documents)


def _loaded(name: str, manager: Any, settings: dict[str, Any], documents: Documents | None) -> Any:
    """The harness's own task. Raises CorpusError where it cannot be made of its documents."""
    spec = {"group": "prunus", "task": [settings]} if name in manager.task_index else settings
    try:
        with quiet():
            found = list(manager.load([spec])["tasks"].values())
    except PrunusError:
        raise
    except Exception as error:  # of the harness, of templates, of the hub's client: the reason is passed on
        where = f"{documents.folder} does not fit its prompts" if documents else "the hub gave no answer"
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise CorpusError(f"task '{name}': {where} ({type(error).__name__}: {reason}).") from None
    task, = found
    return task


def _checked_code(name: str, execute: Execute) -> dict[str, Any]:
    """How a task that runs generated code is scored: as the harness does it, but where the code can do no harm. Raises RecipeError."""
    if name not in _CODE:
        raise RecipeError(f"task '{name}' runs code that the model writes, in a way that cannot be confined. Of such tasks "
                          f"{' and '.join(_CODE)} can be measured.")
    if execute == "off":
        raise RecipeError(f"task '{name}' runs code that the model writes. Say execute = 'sandbox' (--execute sandbox) to run it in a "
                          "process without network that can write nothing, or leave the task out.")

    def passed(references: list[str], predictions: list[list[str]], **_: Any) -> float:
        (test,), (codes,) = references, predictions
        return float(passes(f"{codes[0]}\n{test}", confined=execute == "sandbox"))

    def whole(answers: list[list[str]], docs: list[Mapping[str, str]]) -> list[list[str]]:
        return [[doc["prompt"] + text for text in said] for said, doc in zip(answers, docs, strict=True)]

    passed.__name__ = "pass@1"  # which the harness takes for the metric's
    return {"metric_list": [{"metric": passed, "aggregation": "mean", "higher_is_better": True}],
            "filter_list": [{"name": "create_test", "filter": [{"function": "custom", "filter_fn": whole}]}]}


def _set_shots(task: Any, shots: int | None, seed: int) -> None:
    """As lm_eval.simple_evaluate does: a task that says 0 keeps to it. Raises CorpusError where there is nothing to draw them from."""
    own = task.get_config("num_fewshot")
    count = (own or 0) if shots is None or own == 0 else shots
    task.set_config("num_fewshot", count)
    task.set_fewshot_seed(seed)
    few = getattr(task, "fewshot_cfg", None)
    told = few is not None and (few.split or few.samples)
    if count and not told and not task.has_training_docs():
        raise CorpusError(f"task '{task.task_name}': {count} shots are asked for, and it has no file of training examples to draw them "
                          "from (train.jsonl, with the columns of the others). Use --shots 0, or put one there.")
