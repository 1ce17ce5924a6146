"""What a study is, and how its file says it: models, recipes (with grids), seeds and metrics, checked whole."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..budget import limit_of
from ..comparing.values import Asked
from ..errors import RecipeError, nearest
from ..granularity import NM, Unstructured
from ..loading import short_name
from ..recipe import Recipe, Stage, build, check_keys, parse_granularity, read_toml

__all__ = ["Metrics", "Study", "Subject", "Treatment", "read_study", "study_of"]

Table = Mapping[str, Any]
_OWN = ("name", "file", "grid", "sparsity", "stage", "calibration")  # keys of a recipe in a study; others are of its one stage
_STAGE = (*(item.name for item in fields(Stage)), "effort")
_SIZES = ("sparsity", "budget", "granularity")  # what recipes of one method differ in


@dataclass(frozen=True)
class Subject:
    """A model that is pruned."""

    source: str  # a folder, a hub id, a .gguf file, or package:NAME
    name: str = ""  # in the report; empty: the last part of the source
    dtype: str = "auto"  # float32, bfloat16, float16, or the checkpoint's own


@dataclass(frozen=True)
class Metrics:
    """What is measured of the dense models and of every pruned one."""

    corpora: tuple[str, ...] = ("builtin",)  # report texts: perplexity, calibration error, divergence from dense, agreement with it
    tasks: tuple[str, ...] = ()  # piqa, arc_easy, …, or folders
    limit: int | None = None  # examples of each task; None: all
    shots: int | None = None  # examples with their answers before each question; None: as the task says
    split: str | None = None  # of the corpora; None: test, or validation where there is no test
    length: int = 512  # tokens per window
    tokens: int = 20_480  # of each text that are read; 0: all

    def __post_init__(self) -> None:
        self.asked()

    def asked(self, device: str = "cpu") -> Asked:
        """As a comparison is asked, without answers and speed: cells of a study are not measured in turn."""
        return Asked(**asdict(self), prompts=(), rounds=0, device=device)


@dataclass(frozen=True)
class Treatment:
    """One recipe of a study."""

    name: str
    recipe: Recipe  # without metrics, prompts and seed, which are the study's
    method: str = ""  # the name of what recipes of several sparsities and shapes have in common; empty: the recipe's own

    @property
    def line(self) -> str:
        """The method as charts call it, apart from the same method with zeros in another shape."""
        shapes = " ".join(str(stage.granularity) for stage in self.recipe.stage if not isinstance(stage.granularity, Unstructured))
        name = self.method or self.name
        return f"{name} {shapes}" if shapes and shapes not in name else name

    @property
    def level(self) -> str:
        """What it is asked to remove; only recipes of one level are compared with each other."""
        return "; ".join(_level(stage) for stage in self.recipe.stage)

    @property
    def fixed(self) -> bool:
        """Whether every seed gives the same: where nothing is drawn from a text, and nothing is searched."""
        return not self.recipe.drawn


def _level(stage: Stage) -> str:
    parts = [f"sparsity {_percent(stage.budget.sparsity)}"]
    parts += [f"of {', '.join(stage.sites)} sites"] if stage.sites != ("linear",) else []
    shape = stage.granularity
    same = replace(shape, permute=False) if isinstance(shape, NM) else shape  # in another order as much goes, in the same pattern
    parts += [str(same)] if not isinstance(shape, Unstructured) else []
    return ", ".join(parts)


def _percent(share: float) -> str:
    return f"{round(100 * share, 6):g} %"


@dataclass(frozen=True)
class Study:
    """Every model with every recipe and every seed, measured in one way."""

    models: tuple[Subject, ...]
    recipes: tuple[Treatment, ...]
    seeds: tuple[int, ...] = (0,)  # of recipes: they choose the calibration text
    metrics: Metrics = field(default_factory=Metrics)
    title: str = "A study"
    baseline: str = ""  # the method, or the recipe, that others are tested against at their own level; empty: the first of the level
    out: str = ""  # the folder of results; empty: as the command says
    keep: bool = False  # whether pruned models are kept, in models/ of that folder
    device: str = "cpu"

    def __post_init__(self) -> None:
        for what, items in (("models", self.models), ("recipes", self.recipes), ("seeds", self.seeds)):
            if not items:
                raise RecipeError(f"study.{what}: none: expected at least one.")
        for what, names in (("models", [model.name for model in self.models]), ("recipes", [one.name for one in self.recipes]),
                            ("seeds", [str(seed) for seed in self.seeds])):
            _check_twice(what, names)
        known = [name for one in self.recipes for name in dict.fromkeys((one.method or one.name, one.name))]
        if self.baseline and self.baseline not in known:
            raise RecipeError(f"study.baseline = '{self.baseline}': no method and no recipe has this name"
                              f"{nearest(self.baseline, known)} Known: {', '.join(dict.fromkeys(known))}.")


def _check_twice(what: str, names: Sequence[str]) -> None:
    """Names are names of files too, where other signs than letters and digits do not count."""
    seen: dict[str, str] = {}
    for name in names:
        short = file_name(name) if what != "seeds" else name
        if short in seen:
            hint = " Give them names: name = \"…\"." if what != "seeds" else ""
            other = "" if seen[short] == name else f" ('{seen[short]}' and '{name}' would share a file)"
            raise RecipeError(f"study.{what}: '{name}' is there twice{other}: expected every one once.{hint}")
        if not short:
            raise RecipeError(f"study.{what}: the name '{name}' has no letter and no digit in it.")
        seen[short] = name


def file_name(name: str) -> str:
    """A name as a part of a file's."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.").lower()


@dataclass(frozen=True)
class _File:
    """The keys of a study file."""

    models: tuple[Subject, ...]
    recipes: tuple[dict, ...]
    seeds: tuple[int, ...] = (0,)
    metrics: Metrics = field(default_factory=Metrics)
    title: str = ""
    baseline: str = ""
    out: str = ""
    keep: bool = False
    device: str = "cpu"


def read_study(path: str | Path) -> Study:
    """A study from a TOML file. Raises RecipeError that names the place of what is wrong."""
    return study_of(read_toml(path, "study"), Path(path).stem)


def study_of(data: Table, title: str = "A study") -> Study:
    """A study from plain data, as a file has it. Raises RecipeError."""
    file: _File = build(_File, data, "study")
    recipes = [one for place, entry in enumerate(file.recipes) for one in _treatments(entry, f"study.recipes[{place}]")]
    models = [model if model.name else Subject(model.source, short_name(model.source), model.dtype) for model in file.models]
    return Study(tuple(models), tuple(recipes), file.seeds, file.metrics, file.title or title, file.baseline, file.out, file.keep,
                 file.device)


def _treatments(entry: Table, where: str) -> Iterator[Treatment]:
    """The recipes of one entry: one, or one for every point of its grid."""
    check_keys(entry, (*_OWN, *(name for name in _STAGE if name not in _OWN)), where)
    grid = dict(_paths(entry.get("grid", {}), f"{where}.grid"))
    name = entry.get("name", Path(entry["file"]).stem if "file" in entry else "")
    if not isinstance(name, str) or not (name or grid):
        raise RecipeError(f"{where}.name: expected a name, as there is no grid to name it by.")
    base = {key: value for key, value in entry.items() if key not in ("name", "file", "grid")}
    if "file" in entry:
        base = {**_of_file(entry["file"], f"{where}.file"), **base}
    for values in product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        data = base
        for path, value in point.items():
            data = _with(data, path.split("."), value, f"{where}.grid.{path}")
        labels = {path: _label(path, value) for path, value in point.items()}
        varied = {path for path, choices in grid.items() if len(choices) > 1 or not name}
        own = _named(name, labels, varied, where)
        sizes = {path: "" for path in labels if path in _SIZES}
        yield Treatment(own, _recipe(data, f"{where} ({own})"), _named(name, {**labels, **sizes}, varied, where) or own)


def _paths(table: Any, where: str) -> Iterator[tuple[str, list[Any]]]:
    """Dotted paths of a grid, and the values of each. Raises RecipeError."""
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} = {table!r}: expected a table of lists.")
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{path}", values) for path, values in _paths(value, f"{where}.{key}"))
        elif not isinstance(value, list) or not value:
            raise RecipeError(f"{where}.{key} = {value!r}: expected a list of at least one value.")
        else:
            yield key, value
    if where.endswith(".grid"):
        check_keys(table, ("sparsity", "calibration", *_STAGE), where)


def _of_file(path: Any, where: str) -> dict[str, Any]:
    """What a recipe's file says but for what the study says itself."""
    if not isinstance(path, str):
        raise RecipeError(f"{where} = {path!r}: expected the path of a recipe, from the folder where the command runs.")
    data = read_toml(path, "recipe")
    build(Recipe, data, "recipe")  # what is wrong in the file is told of the file
    return {key: value for key, value in data.items() if key not in ("metrics", "prompts", "seed")}


def _with(data: Table, path: Sequence[str], value: Any, where: str) -> dict[str, Any]:
    """The same data with another value at a path; a plug-in's name on the way becomes its table."""
    key, *rest = path
    if not rest:
        return {**data, key: value}
    inner = data.get(key, {})
    inner = {"name": inner} if isinstance(inner, str) else inner
    if not isinstance(inner, Mapping):
        raise RecipeError(f"{where}: {key} = {inner!r} is no table.")
    return {**data, key: _with(inner, rest, value, where)}


def _label(path: str, value: Any) -> str:
    if path == "sparsity" and isinstance(value, int | float):
        return _percent(value)
    match value:
        case str():
            return value
        case Mapping():
            return ",".join(str(each) if key == "name" else f"{key}={_label('', each)}" for key, each in value.items())
        case list():
            return "+".join(_label("", each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(name: str, labels: Mapping[str, str], varied: set[str], where: str) -> str:
    """A name with the labels of its point: where it says so, and at its end where it says nothing of them. Raises RecipeError."""
    missing = [f"{path.rpartition('.')[2]} {label}" if re.match(r"[\d-]", label) and path not in _SIZES else label
               for path, label in labels.items() if path in varied and f"{{{path}}}" not in name]
    for path, label in labels.items():
        name = name.replace(f"{{{path}}}", label)
    if wrong := re.search(r"\{[^{}]*\}", name):
        raise RecipeError(f"{where}.name: {wrong[0]} stands for nothing in its grid"
                          f"{nearest(wrong[0][1:-1], list(labels))} Known: {', '.join(labels) or 'none'}.")
    return " ".join(" ".join([name, *missing]).split())


def _recipe(data: Table, where: str) -> Recipe:
    """A recipe from its own keys, and keys of its one stage. Raises RecipeError."""
    stages = data.get("stage", [{}])
    flat = {key: value for key, value in data.items() if key in _STAGE or key == "sparsity"}
    if not isinstance(stages, list) or not all(isinstance(stage, Mapping) for stage in stages):
        raise RecipeError(f"{where}.stage = {stages!r}: expected a list of tables.")
    if flat:
        if len(stages) != 1:
            raise RecipeError(f"{where}.{next(iter(flat))}: the recipe has {len(stages)} stages: say it within one of them.")
        stages = [_stage({**stages[0], **flat}, "budget" in flat, where)]
    text = {"calibration": data["calibration"]} if "calibration" in data else {}
    recipe: Recipe = build(Recipe, {"stage": stages, **text, "metrics": [], "prompts": []}, where)
    return recipe


def _stage(stage: dict[str, Any], sized: bool, where: str) -> dict[str, Any]:
    """A stage's table with its budget; n:m says it by itself."""
    sparsity = stage.pop("sparsity", None)
    if sparsity is not None and sized:
        raise RecipeError(f"{where}: sparsity and budget: expected one of them.")
    if isinstance(stage.get("sites"), str):
        stage["sites"] = [stage["sites"]]
    if sparsity is not None:
        if not isinstance(sparsity, int | float) or isinstance(sparsity, bool):
            raise RecipeError(f"{where}.sparsity = {sparsity!r}: expected a number.")
        return {**stage, "budget": {"limit": limit_of(float(sparsity), f"{where}.sparsity =")}}
    shape = stage.get("granularity")
    granularity = parse_granularity(shape, f"{where}.granularity") if isinstance(shape, str) else None
    if isinstance(granularity, NM) and "budget" not in stage:
        return {**stage, "budget": {"limit": granularity.n / granularity.m}}
    return stage
