"""Write the generated pages of docs/ and fill the tables of results; with --check, only list the files that are stale.

docs/reference/ is made from the sources: one page per plug-in folder, one section per plug-in. In README.md and docs/,
what stands between `<!-- table: NAME -->` and `<!-- end -->` comes from the newest file in benchmarks/results that has
a table of that name; a table without a result stays empty.
"""

import ast
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
RESULTS = ROOT / "benchmarks" / "results"
GENERATED = "<!-- Written by docs/reference.py (make docs); do not edit. -->"
FOLDERS = {  # folder: (title, guide)
    "solvers": ("Solvers", "add-a-solver"), "criteria": ("Criteria", ""), "allocation": ("Allocators", "add-an-allocator"),
    "search.strategies": ("Search strategies", "add-a-search-strategy"),
    "search.spaces": ("Spaces of architectures", ""), "search.searchers": ("Searchers of a front", ""),
    "supernet": ("Super-network training", ""),
    "recovery": ("Recoveries", ""), "quantisers": ("Quantisers", ""), "evaluation": ("Metrics", ""),
    "anatomy": ("Model families", "add-a-model-family"), "export": ("Formats", ""),
    "report": ("Reports", ""),
}
VALUES = {  # page: (title, introduction, {module: classes})
    "recipe": ("Recipe",
               "The values that a recipe is made of. In TOML every one is a table and its fields are keys; a plug-in is its "
               'name or a table with a `name`; a granularity is a string such as "2:4". None is said by leaving the key out. A stage may '
               'say `effort = "fast"`, "balanced" or "best" too, which composes the keys that it leaves out.',
               {"recipe": ("Recipe", "Stage"), "budget": ("Budget",), "search.plan": ("Search",), "calibration.sample": ("Calibration",),
                "calibration.target": ("Target",),
                "granularity": ("Unstructured", "NM", "Tile", "Columns")}),
    "python": ("Python", "The functions of the package, and the values that they take and give.",
               {"loading": ("load", "Loaded"), "anatomy": ("describe",), "pipeline": ("prune", "Progress"),
                "calibration.placement": ("Placement",), "calibration.tasks": ("Task", "Labelled", "Examples", "Encoded", "encoded"),
                "finetune": ("train_supernet", "Training", "TrainingProgress", "Trained"), "search.sampling": ("Sampling",),
                "predictions": ("score", "answers"), "scores": ("Score",), "distillation": ("distilled_loss", "task_loss"),
                "export.huggingface": ("save",),
                "quantising": ("quantise", "Plan", "Quantised", "MatrixRecord"), "quantisation": ("Grid", "Rounded"),
                "compressed": ("save_compressed",),
                "result": ("Pruned", "Report", "SiteRecord"), "evaluation": ("Measurement", "Example"), "cost": ("Cost",),
                "grams": ("Overlap",), "known": ("Known", "Sanity", "read_known"), "achieved": ("Counted", "counted", "of_folder"),
                "uncertainty": ("mean_interval", "difference_interval", "paired_ratio_interval", "share_interval"),
                "significance": ("mcnemar", "sign_flips", "of_seeds", "Seeds", "holm"),
                "comparing.run": ("compare", "write"), "comparing.values": ("Asked", "Compared", "Contender", "Row", "Entry", "Beside"),
                "studying.plan": ("read_study", "study_of", "Study", "Subject", "Treatment", "Metrics"),
                "studying.run": ("planned", "carry_out", "Plan", "State", "Told"), "studying.work": ("Apart",),
                "studying.gathered": ("gathered",), "studying.content": ("write",),
                "studying.numbers": ("tested", "Number", "Entry", "Against"),
                "comparison": ("ranked", "Ranking", "Standing", "check_pair"),
                "sites": ("Anatomy", "Block", "LinearSite", "ChannelSite", "Producer", "SublayerSite")}),
}
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write what is stale, or say what is and fail."""
    old = stale()
    for path in old:
        print(path.relative_to(ROOT))
    if "--check" in sys.argv[1:]:
        if old:
            sys.exit("These files are stale: run `make docs`.")
        return
    for path, text in old.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def stale() -> dict[Path, str]:
    """The files whose text is not what it would be if written now, with the text to be."""
    wanted = {**dict(pages()), **dict(filled())}
    return {path: text for path, text in wanted.items()
            if not path.exists() or path.read_text(encoding="utf-8") != text}


def pages() -> Iterator[tuple[Path, str]]:
    """Every page of docs/reference."""
    from prunus.lookup import names

    for folder, (title, guide) in FOLDERS.items():
        text = inspect.getdoc(importlib.import_module(f"prunus.{folder}")) or ""
        parts = [text, *contract(folder)]
        if guide:
            parts.append(f"To add one: [guide](../guides/{guide}.md).")
        yield page(folder, title, parts + [plugin(folder, name) for name in names(folder)])
    for name, (title, introduction, homes) in VALUES.items():
        sections = [section(module, item) for module, items in homes.items() for item in items]
        yield page(name, title, [introduction, *sections])
    yield page("cli", "Command line", ["The commands, their options and the defaults.", *commands()])


def page(name: str, title: str, parts: list[str]) -> tuple[Path, str]:
    """A path and its text."""
    return PAGES / f"{name}.md", "\n\n".join([f"# {title}", GENERATED, *(part for part in parts if part)]) + "\n"


def contract(folder: str) -> list[str]:
    """What every plug-in of a folder promises: the docstring of its protocol."""
    package = importlib.import_module(f"prunus.{folder}")
    protocols = [item for name in package.__all__ if getattr(item := getattr(package, name), "_is_protocol", False)]
    return [f"The contract, `{package.__name__}.{item.__name__}`: {inspect.getdoc(item)}" for item in protocols]


def plugin(folder: str, name: str) -> str:
    """One plug-in: what it is, what it needs and supports, and its fields."""
    module = importlib.import_module(f"prunus.{folder}.{name}")
    item = getattr(module, module.__all__[0])
    parts = [f"## {name}", inspect.getdoc(module) or ""]
    if inspect.isclass(item):
        parts += [f"`{module.__name__}.{item.__name__}`: {inspect.getdoc(item)}", facts(item()), fields(item)]
    else:
        parts += [inspect.getdoc(item) or "", first_block(name, item)]
    return "\n\n".join(part for part in parts if part)


def facts(plug: Any) -> str:
    """What a plug-in with default fields says about itself."""
    kinds = ", ".join(kind.__name__.lower() for kind in getattr(plug, "supports", ()))
    found = {
        "Needs": getattr(plug, "needs", ""), "Granularities": kinds,
        "Scope, where the recipe names none": getattr(plug, "scope", ""),
        "Unit": getattr(plug, "unit", ""), "Better": getattr(plug, "better", ""),
    }
    return "\n".join(f"- {key}: {value}" for key, value in found.items() if value)


def fields(kind: type) -> str:
    """A table of the fields: type, default, and the comment behind each in the source."""
    rows = []
    lines = inspect.getsource(kind).splitlines()
    definition = ast.parse("\n".join(lines)).body[0]
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            default = f"`{ast.unparse(node.value)}`" if node.value else "required"
            behind = lines[(node.end_lineno or 1) - 1].encode()[node.end_col_offset or 0 :].decode()
            rows.append([f"`{ast.unparse(node.target)}`", f"`{ast.unparse(node.annotation)}`", default,
                         behind.partition("#")[2].strip()])
    return table(["field", "type", "default", "meaning"], rows) if rows else ""


def first_block(name: str, family: Any) -> str:
    """The sites of one block, as paths from the block."""
    from transformers import AutoConfig

    block = family(AutoConfig.for_model(name)).blocks[0]
    kinds: dict[str, list[str]] = {}
    for site in block.sites:
        kind = type(site).__name__.removesuffix("Site").lower()
        kinds.setdefault(kind, []).append(f"`{site.name.removeprefix(block.name + '.')}`")
    return "\n".join(f"- {kind}: {', '.join(paths)}" for kind, paths in kinds.items())


def section(module: str, name: str) -> str:
    """A class with its fields, or a function with its signature."""
    home = importlib.import_module(f"prunus.{module}")
    item = getattr(home, name)
    text = inspect.getdoc(item) or ""
    if inspect.isclass(item):
        return "\n\n".join(part for part in (f"## {name}", f"`{home.__name__}.{name}`: {text}", fields(item)) if part)
    definition = ast.parse(inspect.getsource(item)).body[0]
    assert isinstance(definition, ast.FunctionDef)
    result = ast.unparse(definition.returns) if definition.returns else "None"
    return f"## {name}\n\n```python\ndef {name}({ast.unparse(definition.args)}) -> {result}: ...\n```\n\n{text}"


def commands() -> Iterator[str]:
    """One section per subcommand, with its arguments and options as the program itself describes them."""
    import typer.main

    from prunus.cli.main import app

    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        rows = [parameter(item) for item in command.params if item.name != "help"]
        parts = [f"## prunus {name}", inspect.cleandoc(command.help or ""), table(["option", "meaning", "default"], rows)]
        yield "\n\n".join(parts)


def parameter(item: Any) -> list[str]:
    """An argument or option: how it is written, its help, its default."""
    label = item.name.upper() if item.param_type_name == "argument" else ", ".join(item.opts)
    text, _, noted = (item.help or "").partition(" [default: ")
    default = noted.removesuffix("]") or ("" if item.default in (None, False) else str(item.default))
    return [f"`{label}`", text, "required" if item.required else default]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled() -> Iterator[tuple[Path, str]]:
    """Pages with markers, their tables replaced by the newest results."""
    newest = results()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if path.parent != PAGES and _MARK.search(text):
            yield path, fill(text, newest, path)


def fill(text: str, newest: dict[str, tuple[Path, dict[str, Any]]], path: Path) -> str:
    """The text of the page at `path`, with the newest table between each pair of markers."""
    return _MARK.sub(lambda mark: mark[1] + shown(newest.get(mark[2]), path) + mark[3], text)


def results() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Marker to (file, content) of the newest result; file names begin with the date."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in sorted(RESULTS.rglob("*.json"), key=lambda file: file.name):
        data = json.loads(file.read_text(encoding="utf-8"))
        found |= {name: (file, {**data, "table": text}) for name, text in data.get("tables", {}).items()}
    for file in sorted((ROOT / "benchmarks" / "studies").glob("*/study.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        found |= {f"study_{file.parent.name}": (file, studied(data)), f"study_{file.parent.name}_by_level": (file, by_level(data))}
    return found


def studied(data: dict[str, Any]) -> dict[str, Any]:
    """Of a study: the perplexities of every recipe, their gaps to the dense model beside those of the baseline that removes as much,
    and what it took."""
    (model,) = data["models"]
    numbers = [number for number in model["numbers"] if number["unit"] == "perplexity"]
    recipes = numbers[0]["recipes"]
    levels = list(dict.fromkeys(entry["level"] for entry in recipes.values()))
    counted = any(cost.get("processor") for cost in model["costs"].values())
    rows = [["dense", *(f"{number['dense']:.2f}" for number in numbers), *("0" for _ in numbers), *[""] * (2 + counted)]]
    for recipe in sorted(filter(model["costs"].get, recipes), key=lambda name: levels.index(recipes[name]["level"])):  # those with cells
        cost, against = model["costs"][recipe], recipes[recipe]["against"]
        other = against["baseline"] if against else recipe
        means = [(number["dense"], *(number["recipes"][name]["mean"] for name in (recipe, other))) for number in numbers]
        rows.append([recipe, *(_perplexity(number["recipes"][recipe]) for number in numbers),
                     *(f"{(mine - dense) / (theirs - dense):.2f}" for dense, mine, theirs in means), f"{cost['seconds']:.0f} s",
                     *[f"{cost['processor']:.0f} s" if cost.get("processor") else ""] * counted, f"{cost['host_bytes'] / 2**20:.0f} MiB"])
    labels = [number["label"].removesuffix(" perplexity") for number in numbers]
    return _of_study(data, numbers, ["", *labels, *(f"gap, {label}" for label in labels), "pruning", *["of a processor"] * counted,
                                     "peak memory"], rows)


def by_level(data: dict[str, Any]) -> dict[str, Any]:
    """Of a study: the first perplexity of every method, in a column for all that recipes were asked to remove."""
    (model,) = data["models"]
    number = next(number for number in model["numbers"] if number["unit"] == "perplexity")
    found = {(one["method"] or one["name"], one["level"]): number["recipes"][one["name"]] for one in data["study"]["recipes"]}
    methods, levels = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
    rows = [["dense", *[f"{number['dense']:.2f}"] * len(levels)]]
    rows += [[method, *(_perplexity(found[method, level]) if (method, level) in found else "" for level in levels)] for method in methods]
    return _of_study(data, [number], ["", *(level.rpartition(", ")[2].removeprefix("sparsity ") for level in levels)], rows)


def _of_study(data: dict[str, Any], numbers: list[dict[str, Any]], head: list[str], rows: list[list[str]]) -> dict[str, Any]:
    texts = {"{corpus} {split}, {samples} sequences of {length} tokens".format(**one["recipe"]["calibration"])
             for one in data["study"]["recipes"]}
    return {"table": table(head, rows), "environment": {"machine": ", ".join(data["machines"])},
            "calibration": "; ".join(sorted(texts)), "protocol": "; ".join(number["protocol"] for number in numbers)}


def _perplexity(entry: dict[str, Any]) -> str:
    """Over seeds, with their deviation where there are several."""
    mean, deviation = entry["mean"], entry["deviation"]
    if not isinstance(mean, float):
        return ""
    form = ".2f" if mean < 100 else ".1f" if mean < 1000 else ".0f" if mean < 1e6 else ".3g"
    return " ± ".join(format(value, form) for value in (mean, deviation) if isinstance(value, float))  # "nan" with one seed


def shown(result: tuple[Path, dict[str, Any]] | None, path: Path) -> str:
    """A table and where it comes from; nothing where there is no result."""
    if result is None:
        return ""
    file, data = result
    known = data.get("environment", {})
    at = f", at commit {known['commit']}" if "commit" in known else ""
    said = [f"Measured on {known.get('machine', 'unknown')}{at}: [result]({os.path.relpath(file, path.parent)})."]
    said += [f"{key.capitalize()}: {data[key]}." for key in ("calibration", "protocol") if isinstance(data.get(key), str)]
    return "\n" + data["table"].strip() + "\n\n" + "\n".join(said) + "\n\n"


if __name__ == "__main__":
    main()
