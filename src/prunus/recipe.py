"""Intentions: what a run will do, as values; and plain data (TOML, flags) turned into them, checked whole."""

import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from .allocation import Allocator, Denominator
from .allocation.uniform import Uniform
from .budget import Budget
from .calibration.sample import Calibration
from .calibration.target import Target
from .coherence import check_stage
from .criteria import Criterion, loss_needs
from .effort import preset, writes
from .errors import RecipeError, UnknownName, nearest
from .evaluation import Metric
from .evaluation.perplexity import Perplexity
from .generations import PROMPTS
from .granularity import NM, Columns, Granularity, Tile, Unstructured
from .lookup import find, name_of, names
from .quantisers import Quantiser
from .recovery import Recovery
from .search.plan import Search
from .search.searchers import Searcher
from .search.spaces import ArchitectureSpace
from .search.strategies import Strategy
from .sites import Kind
from .solvers import Solver
from .solvers.alps import ALPS
from .stats import LossNeeds, Needs
from .supernet import TrainingStrategy

__all__ = ["Recipe", "Stage", "build", "check_keys", "parse_granularity", "plain", "plugin", "read_toml"]


@dataclass(frozen=True)
class Stage:
    """One kind of site, how much of it may remain, in which shape, and who decides."""

    sites: tuple[Kind, ...] = ("linear",)  # linear, channel or sublayer
    budget: Budget = Budget(0.5)  # how much of these sites' weights may remain
    granularity: Granularity = Unstructured()  # the shape of the zeros
    solver: Solver = ALPS()  # which weights stay, and what they become
    allocation: Allocator = Uniform()  # how much each site gives
    skip: tuple[str, ...] = ()  # glob patterns of site names to leave alone
    multiple: int = 1  # of the MLP channels that stay in a matrix, where channels go
    search: Search | None = None  # improves what the allocator says
    recovery: Recovery | None = None  # repairs what is kept
    target: Target = Target()  # what matrices are fitted to, and on which tokens

    def __post_init__(self) -> None:
        if len(self.sites) != 1:
            raise RecipeError(f"sites = {list(self.sites)}: expected one kind per stage. Use several stages.")
        check_stage(self)

    @classmethod
    def of(cls, effort: str, **given: Any) -> "Stage":
        """What is composed for an effort: fast, balanced or best. Fields that are given take the place of its own; the text that the
        model writes for it in recipe files is the calibration's matter (`Calibration.written`). Raises RecipeError."""
        (kind,), granularity = given.get("sites", cls.sites), given.get("granularity", cls.granularity)
        hints = typing.get_type_hints(cls)
        composed = {key: build(hints[key], value, key) for key, value in preset(effort, kind, granularity).items() if key not in given}
        return cls(**composed, **given)

    @property
    def needs(self) -> tuple[Needs, ...]:
        """What its parts want to know of the model's inputs; of branches, nothing is solved."""
        repairing: tuple[Needs, ...] = ("power",) if self.recovery else ()
        if self.sites == ("sublayer",):
            return ("power",)
        reordering: tuple[Needs, ...] = ("power",) if isinstance(self.granularity, NM) and self.granularity.permute else ()
        return self.solver.needs, self.allocation.needs, self.target.needs, *repairing, *reordering

    @property
    def loss_needs(self) -> dict[str, LossNeeds]:
        """What its parts want to know of the loss, by part."""
        parts: dict[str, Any] = {"allocation": self.allocation} | ({} if self.sites == ("sublayer",) else {"solver": self.solver})
        return {part: needs for part, plugin in parts.items() if (needs := loss_needs(plugin))}

    @property
    def deriving(self) -> tuple[str, ...]:
        """Its parts that look at the gradient of the loss."""
        return *self.loss_needs, *(["target.fisher"] if self.target.fisher else [])

    @property
    def denominators(self) -> frozenset[Denominator]:
        """What the allocator and the search count the importance of branches for each unit of."""
        parts = (self.allocation, self.search.strategy if self.search else None)
        return frozenset(getattr(part, "denominator", "none") for part in parts)


@dataclass(frozen=True)
class Recipe:
    """All that decides a result, but the model and the machine."""

    stage: tuple[Stage, ...] = (Stage(),)  # run in order
    calibration: Calibration = Calibration()  # text for the statistics
    metrics: tuple[Metric, ...] = (Perplexity(),)  # measured before and after
    prompts: tuple[str, ...] = field(default=PROMPTS)  # answered before and after; @mt_bench:4:0 stands for 4 of a corpus, by seed 0
    seed: int = 0  # chooses the calibration sequences

    def __post_init__(self) -> None:
        if not self.stage:
            raise RecipeError("stage: expected at least one.")
        if not -(2**63) <= self.seed < 2**63:
            raise RecipeError(f"seed = {self.seed}: expected a number of 64 bits.")
        shapes = [stage.granularity for stage in self.stage]
        for index, shape in enumerate(shapes):
            if isinstance(shape, NM) and shape.permute and any(isinstance(other, Tile) for other in shapes[:index]):
                raise RecipeError(f"stage[{index}].granularity {shape}: would move rows of the tiles that an earlier stage leaves. "
                                  "Leave permute out, or tiles.")

    @property
    def calibrated(self) -> bool:
        """Whether calibration text is read."""
        return any(stage.deriving or any(need != "nothing" for need in stage.needs) for stage in self.stage)

    @property
    def drawn(self) -> bool:
        """Whether the seed decides anything: which sequences of a text are read, or where a search begins."""
        return self.calibrated or any(stage.search for stage in self.stage)

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """A recipe from a TOML file. Raises RecipeError that names the place of what is wrong."""
        recipe = build(cls, read_toml(path, "recipe"), "recipe")
        assert isinstance(recipe, cls)
        return recipe

    def to_toml(self) -> str:
        """The recipe in full, as a file that `load` reads."""
        import tomli_w

        return tomli_w.dumps(plain(self))


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """The data of a TOML file, which messages call `what`. Raises RecipeError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{what} {path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{what} {path}: not valid TOML: {error}") from None


# Plug-in types and the folders they are looked up in.
_FOLDERS: dict[Any, str] = {Solver: "solvers", Criterion: "criteria", Allocator: "allocation", Metric: "evaluation",
                            Strategy: "search.strategies", Recovery: "recovery",
                            ArchitectureSpace: "search.spaces", Searcher: "search.searchers", TrainingStrategy: "supernet",
                            Quantiser: "quantisers"}
_SHAPES: dict[str, type] = {"unstructured": Unstructured, "nm": NM, "tile": Tile, "columns": Columns}


def build(kind: Any, data: Any, where: str) -> Any:
    """Plain data as a value of type `kind`; every error names the place, as `recipe.stage[0].solver.damping`."""
    if kind in _FOLDERS:
        return plugin(_FOLDERS[kind], data, where)
    if kind == Granularity:
        return _granularity(data, where)
    if is_dataclass(kind):
        return _record(kind, _composed(kind, data, where), where)
    match get_origin(kind):
        case typing.Literal:
            if data not in get_args(kind):
                raise RecipeError(f"{where} = {data!r}: expected one of {', '.join(map(repr, get_args(kind)))}"
                                  f"{nearest(str(data), [str(word) for word in get_args(kind)])}")
            return data
        case origin if origin is tuple:
            if not isinstance(data, list | tuple):
                raise RecipeError(f"{where} = {data!r}: expected a list.")
            return tuple(build(get_args(kind)[0], item, f"{where}[{index}]") for index, item in enumerate(data))
        case origin if origin in (Union, types.UnionType):
            options = [option for option in get_args(kind) if option is not type(None)]
            nothing = data is None or (data == "none" and options[0] in _FOLDERS)
            return None if nothing else build(options[0], data, where)
    return _scalar(kind, data, where)


def _composed(kind: Any, data: Any, where: str) -> Any:
    """A recipe's or stage's table without `effort`, and with what that composes where the table says nothing itself."""
    if not isinstance(data, Mapping) or kind not in (Recipe, Stage):
        return data
    if kind is Recipe:
        return _with_written(data)
    if "effort" not in data:
        return data
    own = {key: value for key, value in data.items() if key != "effort"}
    (sites,) = build(tuple[Kind, ...], own.get("sites", Stage.sites), f"{where}.sites")[:1] or Stage.sites
    granularity = _granularity(own.get("granularity", "unstructured"), f"{where}.granularity")
    try:
        return {**preset(data["effort"], sites, granularity), **own}
    except RecipeError as error:
        raise RecipeError(f"{where}.{error}") from None


def _with_written(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's table with the sequences that the model writes, where an effort asks for them and nothing else is said."""
    text, stages = data.get("calibration", {}), data.get("stage", ())
    if not isinstance(text, Mapping) or not isinstance(stages, list | tuple) or "written" in text or text.get("corpus") == "self":
        return data
    share = max((writes(stage.get("effort"), stage.get("sites", Stage.sites)) for stage in stages if isinstance(stage, Mapping)), default=0)
    samples = text.get("samples", Calibration.samples)
    return {**data, "calibration": {**text, "written": math.ceil(share * samples)}} if share and isinstance(samples, int) else data


def _scalar(kind: type, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (kind is not bool and isinstance(data, bool)):
        raise RecipeError(f"{where} = {data!r}: expected {kind.__name__}, found {type(data).__name__}.")
    if isinstance(data, float) and not math.isfinite(data):
        raise RecipeError(f"{where} = {data}: expected a finite number.")
    return data


def _record(kind: Any, data: Any, where: str) -> Any:
    """A dataclass from a table."""
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where} = {data!r}: expected a table, found {type(data).__name__}.")
    hints = typing.get_type_hints(kind)
    known = [item.name for item in fields(kind)]
    check_keys(data, known, where)
    missing = [item.name for item in fields(kind)
               if item.name not in data and item.default is MISSING and item.default_factory is MISSING]
    if missing:
        raise RecipeError(f"{where}: '{missing[0]}' is missing.")
    values = {key: build(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return kind(**values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse a key that nothing has. Raises RecipeError."""
    for key in table:
        if key not in known:
            raise RecipeError(f"{where}.{key}: unknown key{nearest(key, list(known))} Known: {', '.join(known) or 'none'}.")


def plugin(folder: str, data: Any, where: str) -> Any:
    """A plug-in of a folder from its name, or from a table with `name` and its settings; a criterion stands for a mask solver."""
    table = {"name": data} if isinstance(data, str) else data
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise RecipeError(f"{where} = {data!r}: expected a name or a table with a name.")
    name, settings = table["name"], {key: value for key, value in table.items() if key != "name"}
    if folder == "solvers" and name not in names(folder) and name in names("criteria"):
        criterion = plugin("criteria", table, where)
        return find(folder, "mask")(criterion)
    try:
        kind = find(folder, name)
    except UnknownName:
        known = [*names(folder), *(names("criteria") if folder == "solvers" else ())]  # criteria stand for solvers
        raise RecipeError(f"{where}: {str(UnknownName(folder, name, known)).partition(': ')[2]}") from None
    if not is_dataclass(kind):
        raise RecipeError(f"{where}: '{name}' is no plug-in: expected a dataclass.")
    return _record(kind, settings, where)


def _granularity(data: Any, where: str) -> Granularity:
    if isinstance(data, str):
        return parse_granularity(data, where)
    if not isinstance(data, Mapping) or data.get("name") not in _SHAPES:
        raise RecipeError(f"{where} = {data!r}: expected a name such as 'unstructured' or '2:4', or a table with a name "
                          f"among {', '.join(_SHAPES)}.")
    settings = {key: value for key, value in data.items() if key != "name"}
    granularity: Granularity = _record(_SHAPES[data["name"]], settings, where)
    return granularity


def parse_granularity(text: str, where: str = "granularity") -> Granularity:
    """`unstructured`, `unstructured:row`, `2:4`, `2:4,permute=true`, `tile:4x4`, `columns`, `columns:8` or `columns:1x64` (a multiple
    of 64 stays; with `,nearest=true` the nearest one). Raises RecipeError."""
    shape, *settings = text.split(",")
    head, _, rest = shape.partition(":")
    scope: Literal["native", "row", "matrix"]
    try:
        name = {"columns": "nearest", "unstructured": "none", "tile": "none"}.get(head, "permute")
        flag = bool(settings) and {f"{name}=true": True, f"{name}=false": False}[",".join(settings)]
        match head:
            case "unstructured" if rest in ("", "native", "row", "matrix"):
                scope = rest or "native"  # type: ignore[assignment]
                return Unstructured(scope)
            case "columns":
                width, apart, multiple = rest.partition("x")
                return Columns(int(width) if rest else 1, int(multiple) if apart else 1, flag)
            case "tile":
                rows, _, columns = rest.partition("x")
                return Tile(int(rows), int(columns))
            case _:
                return NM(int(head), int(rest), flag)
    except (ValueError, KeyError):
        raise RecipeError(f"{where} = '{text}': expected unstructured, unstructured:row, unstructured:matrix, n:m (2:4), "
                          "n:m,permute=true, tile:4x4, columns, columns:8 or columns:1x64.") from None


def plain(value: Any) -> Any:
    """A value as plain data that `build` turns back into it; None is left out."""
    if isinstance(value, Unstructured | NM | Tile | Columns):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        table = {item.name: plain(getattr(value, item.name)) for item in fields(value)
                 if getattr(value, item.name) is not None}
        return {"name": name_of(type(value)), **table} if _is_plugin(value) else table
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def _is_plugin(value: Any) -> bool:
    return any(isinstance(value, protocol) for protocol in _FOLDERS)
