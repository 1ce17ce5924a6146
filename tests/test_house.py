"""The house stands as its plan says: floors, public names, sizes, plug-ins."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from prunus.lookup import names

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "prunus").rglob("*.py"))
FOLDERS = ("allocation", "anatomy", "criteria", "evaluation", "export", "quantisers", "recovery", "report", "search.searchers",
           "search.spaces", "search.strategies", "solvers", "supernet")
PLUGINS = [ROOT / "src" / "prunus" / folder.replace(".", "/") / f"{name}.py" for folder in FOLDERS for name in names(folder)]
every_plugin = pytest.mark.parametrize("file", PLUGINS, ids=lambda file: f"{file.parent.name}/{file.stem}")
every_source = pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT / "src")))


def test_imports_go_down_and_plug_ins_do_not_know_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_plug_in_folder_has_a_contract_of_independence() -> None:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    guarded = {contract["modules"][0] for contract in contracts if contract["type"] == "independence"}
    assert guarded == {f"prunus.{folder}.*" for folder in FOLDERS}


def test_public_names_are_exactly_these_and_all_resolve() -> None:
    assert prunus.__all__ == ["NM", "Budget", "Calibration", "Columns", "PrunusError", "Recipe", "Stage", "Tile", "Unstructured",
                              "allocate", "describe", "load", "prune", "save"]
    assert set(prunus._HOMES) == set(prunus.__all__)
    for name in prunus.__all__:
        assert getattr(prunus, name).__name__ == name
    assert dir(prunus) == sorted([*prunus.__all__, "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'Pruner'"):
        _ = prunus.Pruner


def test_the_example_of_the_issue_imports() -> None:
    from prunus import NM, Budget, Recipe, Stage, load, prune, save

    assert all((prune, save, load, Recipe, Stage, Budget, NM))


def test_names_that_are_used_exist() -> None:
    """ruff takes the shapes of annotations, which are strings, for names; what stands outside of strings is looked at."""
    ran = subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "json", "src",
                          "tests", "benchmarks"], cwd=ROOT, capture_output=True, text=True, check=False)
    missing = []
    for found in json.loads(ran.stdout):
        file, place = Path(found["filename"]), (found["location"]["row"], found["location"]["column"] - 1)
        strings = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if not any((node.lineno, node.col_offset) <= place < (node.end_lineno, node.end_col_offset) for node in strings):
            missing.append(f"{file.relative_to(ROOT)}:{place[0]}: {found['message']}")
    assert missing == []


@every_source
def test_a_file_stays_below_400_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400


@every_source
def test_a_function_fits_on_a_screen(file: Path) -> None:
    """40 lines, docstring and signature included; command functions are mostly signature."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[-1].end_lineno - node.body[0].lineno + 1
            assert body <= 45, f"{node.name}: {body} lines"


@every_source
def test_a_file_says_what_it_is_for_and_has_no_loose_ends(file: Path) -> None:
    text = file.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
    assert not re.search(r"TODO|FIXME|XXX|(?<![\w.])print\(", text)


def public(file: Path) -> list[str]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


@every_plugin
def test_the_first_public_name_of_a_plug_in_s_file_is_the_plug_in(file: Path) -> None:
    first = public(file)[0]
    if file.parent.name == "anatomy":
        assert public(file) == ["family"]
    else:
        assert first.lower() == file.stem.replace("_", "")


@every_plugin
def test_a_plug_in_s_docstrings_begin_with_a_sentence(file: Path) -> None:
    tree = ast.parse(file.read_text())
    (plugin,) = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == public(file)[0]]
    for node in (tree, plugin):
        first = (ast.get_docstring(node) or "").split("\n\n")[0]
        assert len(first.split()) > 1
        assert first.rstrip().endswith(".")


@every_plugin
def test_hyper_parameters_are_frozen_and_each_says_what_it_is(file: Path) -> None:
    if file.parent.name == "anatomy":
        pytest.skip("a function, not a class")
    text = file.read_text()
    (plugin,) = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == public(file)[0]]
    assert "@dataclass(frozen=True)" in text
    assert not plugin.bases
    lines = text.splitlines()
    for node in plugin.body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            assert "#" in lines[node.end_lineno - 1], f"{node.target.id} says nothing of itself"


def test_nobody_seeds_a_global_generator() -> None:
    for file in SOURCES:
        text = file.read_text()
        assert "random.seed(" not in text, file
        if "torch.manual_seed(" in text:
            assert "fork_rng" in text, file
