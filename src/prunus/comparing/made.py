"""How a pruned model was made, as far as its folder says: recipe.toml and report.json beside the weights."""

import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..calibration.choices import as_text, examples
from ..calibration.corpus import Text
from ..calibration.sample import Calibration
from ..errors import PrunusError
from ..files import readable
from ..grams import Looked, Overlap
from ..recipe import build
from ..result import SiteRecord
from ..storage import QUANTISATION
from .values import Made

__all__ = ["made_of", "seen_of"]


def made_of(source: str) -> Made | None:
    """What the folder says; None where it has no report."""
    report = readable(Path(source) / "report.json")
    if not isinstance(report, dict) or "environment" not in report:
        return None
    cost = report.get("cost") or {}
    stages = {name: value for name, value in (cost.get("seconds") or {}).items() if name != "solving"}  # it is a part of another stage
    tokens, joules = (list((cost.get(name) or {}).values()) for name in ("tokens", "joules"))
    return Made(_command(source, report["environment"]), tuple(_records(report.get("sites", ()))), sum(stages.values()) if stages else None,
                sum(tokens) if tokens else None, cost.get("host_bytes") or None, sum(joules) if joules else None, stages,
                cost.get("device_bytes"), cost.get("questions") or 0, cost.get("looks") or 0.0)


def _command(source: str, environment: Mapping[str, str]) -> str:
    recipe = Path(source) / "recipe.toml"
    if not recipe.is_file():
        return ""
    again = f"{str(source).rstrip('/')}-again"
    words = ["prunus", "prune", environment.get("model", "MODEL"), "--recipe", str(recipe), "--dtype", environment.get("dtype", "auto"),
             "--out", again]
    plan = readable(Path(source) / QUANTISATION)
    if not isinstance(plan, dict) or not plan.keys() >= {"method", "grid", "calibration", "seed"}:
        return shlex.join(words)
    return f"{shlex.join(words)} && {shlex.join(_rounded_again(again, plan))}"


def _rounded_again(pruned: str, plan: Any) -> list[str]:
    """The words of prunus quantise for the same plan."""
    method, text = dict(plan["method"]), plan["calibration"] or {}
    name = method.pop("name")
    said = {"bits": plan["grid"]["bits"], "group": plan["grid"]["group"], "method": ",".join(
        [name, *(f"{key}={value}" for key, value in method.items())]), "calibration": text.get("corpus"), "samples": text.get("samples"),
        "length": text.get("length"), "seed": plan["seed"], "out": f"{pruned}-quantised"}
    return ["prunus", "quantise", pruned, *(word for key, value in said.items() if value is not None for word in (f"--{key}", str(value)))]


def _records(rows: Sequence[Any]) -> Iterator[SiteRecord]:
    known = {item.name for item in fields(SiteRecord)}
    for row in rows:
        if isinstance(row, dict) and row.keys() >= known:
            yield SiteRecord(**{name: row[name] for name in known})


def seen_of(source: str, texts: Sequence[Text], looked: Looked) -> tuple[tuple[Overlap, ...], tuple[str, ...]]:
    """How much of the texts and questions that are reported on (as much of each as is measured) stands in what a model's recipe names as
    calibration and search text; and a remark for each of these that cannot be read here."""
    found, remarks = [], []
    for role, table, of_choices in _read_before(source):
        name = f"{role} text"
        try:
            corpus: Calibration = build(Calibration, table, f"{source}/recipe.toml: {role}")
            name = f"{name} ({corpus.corpus} {corpus.split})"
            before = as_text(examples(corpus.corpus, corpus.split), corpus.corpus, corpus.split) if of_choices else corpus.text()
        except PrunusError as error:
            remarks.append(f"Its {name} cannot be read here, so how much of what is reported on stands in it is not known: {error}")
            continue
        if before is None:
            continue
        found += [looked.overlap(before, text, (name, text.called("report"))) for text in texts]
    return tuple(found), tuple(remarks)


def _read_before(source: str) -> Iterator[tuple[str, Any, bool]]:
    """The texts that the recipe of a folder names, of the ones that were read, as plain data, and whether they are multiple choice."""
    plan = readable(Path(source) / QUANTISATION)
    if isinstance(plan, dict) and plan.get("calibration"):
        yield "quantisation", plan["calibration"], False
    try:
        recipe = tomllib.loads((Path(source) / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    report = readable(Path(source) / "report.json")
    forwarded = (report.get("cost") or {}).get("tokens") if isinstance(report, dict) else None
    if forwarded is None or forwarded.get("pruning"):  # a criterion of weights alone reads nothing
        yield "calibration", recipe.get("calibration", {}), False
    stages = recipe.get("stage", ())
    for stage in stages if isinstance(stages, list) else ():
        search = stage.get("search") if isinstance(stage, dict) else None
        if isinstance(search, dict):
            yield "search", search.get("text", {"corpus": "self"}), search.get("objective") == "accuracy"
