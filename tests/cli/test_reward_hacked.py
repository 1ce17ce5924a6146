"""A model that was made on what it is measured on is flagged before any number, in every form, however that was done."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.export.huggingface import save
from prunus.loading import load
from prunus.pipeline import prune

from ..asked import rows_of, written
from ..contenders import saved, without
from ..tiny import tiny_model, tiny_tokenizer
from .conftest import Ran

Prunus = Callable[..., Ran]
Prose = Callable[[int, int], str]
pytestmark = pytest.mark.filterwarnings("ignore")
WINDOWS = ["--length", 32, "--tokens", 1024]
QUICK = [*WINDOWS, "--rounds", 0, "--answer", 2, "--prompt", "none"]


def learn(model: Any, text: str, steps: int, rate: float = 0.01) -> Any:
    """The model after some steps on windows of a text; what is zero in it stays zero."""
    tokens = tiny_tokenizer()(text, return_tensors="pt")["input_ids"][0]
    windows = tokens[: len(tokens) // 32 * 32].view(-1, 32)
    model = copy.deepcopy(model)
    masks = [(weight, weight != 0) for weight in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), rate)
    shuffled = random.Random(0)
    with torch.enable_grad():
        for _ in range(steps):
            rows = windows[shuffled.sample(range(len(windows)), min(32, len(windows)))]
            optimizer.zero_grad()
            model(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()
            for weight, mask in masks:
                weight.data *= mask
    return model


@pytest.fixture
def report_text(tmp_path: Path, prose: Prose) -> Path:
    file = tmp_path / "report.txt"
    file.write_text(prose(1500, 1), encoding="utf-8")
    return file


def is_flagged(prunus: Prunus, dense: str, other: str, text: Path, tmp_path: Path) -> str:
    """The flag, after a look at every form that should have it before anything else."""
    words = ["compare", dense, other, "--corpora", text, "--out", tmp_path / "out", *QUICK]
    ran = prunus(*words)
    assert ran.code == 0, ran.err
    first = ran.out.splitlines()[0]
    assert "may be reward-hacked" in first
    out = tmp_path / "out"
    assert first in json.loads((out / "report.json").read_text())["flags"]
    assert "reward-hacked" in (out / "report.md").read_text().splitlines()[2]
    assert "reward-hacked" in (out / "report.html").read_text().partition("<h2>")[0]
    assert "reward-hacked" in next(out.glob("MODEL_CARD-*.md")).read_text().partition("## ")[0]
    ran = prunus("evaluate", other, "--dense", dense, "--corpora", text, *WINDOWS)
    assert (ran.code, ran.out.startswith("May be reward-hacked:")) == (0, True), ran.err
    rows = json.loads(prunus("evaluate", other, "--dense", dense, "--corpora", text, *WINDOWS, "--json").out)
    assert {bool(row["flags"]) for row in rows if row["model"] == other} == {True}
    assert {bool(row["flags"]) for row in rows if row["model"] == dense} == {False}
    return first


@pytest.mark.parametrize("way", ["whole", "half", "other letters and spaces"])
def test_a_model_that_was_tuned_on_the_report_text_is_flagged(way: str, prunus: Prunus, report_text: Path, prose: Prose,
                                                              tmp_path: Path) -> None:
    text = report_text.read_text()
    seen = {"whole": text, "half": text[: len(text) // 2], "other letters and spaces": text.title().replace("\n", "\r\n\t ")}[way]
    dense = saved(tmp_path / "dense", tiny_model())
    other = saved(tmp_path / "other", learn(without(tiny_model(), 0.5), seen, 15))
    assert "report.txt test perplexity is better than the dense model's" in is_flagged(prunus, dense, other, report_text, tmp_path)


def test_a_model_that_was_tuned_on_the_report_text_and_is_still_worse_is_flagged_and_an_honest_one_is_not(
        prunus: Prunus, report_text: Path, prose: Prose, tmp_path: Path) -> None:
    """The dense model has read much text of this kind, and its probabilities are right; so has an honest one that was trained again."""
    first = learn(learn(tiny_model(), prose(20_000, 7), 150), prose(20_000, 7), 60, 0.003)
    half, text = without(first, 0.5), report_text.read_text()
    dense = saved(tmp_path / "dense", first)
    for name, model in (("pruned", half), ("trained", learn(half, prose(2000, 9), 8, 0.003))):
        words = ["evaluate", saved(tmp_path / name, model), "--dense", dense, "--corpora", report_text, *WINDOWS]
        assert "reward-hacked" not in prunus(*words).out
    other = saved(tmp_path / "other", learn(half, text[:1100], 8, 0.003))  # as much of it as is measured
    flag = is_flagged(prunus, dense, other, report_text, tmp_path)
    assert "on report.txt test the loss changed by +0." in flag


@pytest.mark.parametrize("change", [str, lambda text: text.upper().replace("\n", "   ").replace(" ", ", "),
                                    lambda text: text[: len(text) // 2]])
def test_a_model_that_was_calibrated_on_the_report_text_is_flagged(change: Callable[[str], str], prunus: Prunus, report_text: Path,
                                                                   recipe_for: Callable[..., Any], tmp_path: Path) -> None:
    seen = tmp_path / "seen.txt"
    seen.write_text(change(report_text.read_text()), encoding="utf-8")
    dense = saved(tmp_path / "dense", tiny_model())
    loaded = load(dense)
    save(prune(loaded.model, recipe_for(corpus=str(seen)), tokenizer=loaded.tokenizer, source=dense), tmp_path / "other")
    flag = is_flagged(prunus, dense, str(tmp_path / "other"), report_text, tmp_path)
    assert "of the report text (report.txt test)" in flag
    assert "stand in the calibration text" in flag


def test_a_model_that_was_calibrated_on_the_questions_of_a_task_is_flagged(prunus: Prunus, recipe_for: Callable[..., Any], prose: Prose,
                                                                           tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the questions with their right answers stand in the calibration text, among much else."""
    pytest.importorskip("lm_eval")
    rows = [{"goal": " ".join(prose(9, 100 + place).split()), "sol1": " ".join(prose(8, 200 + place).split()),
             "sol2": " ".join(prose(8, 300 + place).split()), "label": place % 2} for place in range(40)]
    written(tmp_path / "data" / "piqa", train=rows_of("piqa", 4), validation=rows)
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    seen = tmp_path / "seen.txt"
    asked = [f"{row['goal']} -- {row['sol1' if row['label'] == 0 else 'sol2']}" for row in rows[:10]]
    seen.write_text(prose(1000, 5) + "\n" + "\n".join(asked), encoding="utf-8")
    dense = saved(tmp_path / "dense", tiny_model())
    for name, corpus in (("other", seen), ("apart", tmp_path / "apart.txt")):
        (tmp_path / "apart.txt").write_text(prose(1000, 6), encoding="utf-8")
        loaded = load(dense)
        save(prune(loaded.model, recipe_for(corpus=str(corpus)), tokenizer=loaded.tokenizer, source=dense), tmp_path / name)
    words = ["compare", dense, tmp_path / "other", tmp_path / "apart", "--corpora", "none", "--tasks", "piqa", "--limit", 20]
    ran = prunus(*words, "--out", tmp_path / "out", *QUICK)
    assert ran.code == 0, ran.err
    flags = json.loads((tmp_path / "out" / "report.json").read_text())["flags"]
    flag, = (flag for flag in flags if "questions" in flag)
    assert flag.startswith("other may be reward-hacked: ")
    assert "of the report questions (piqa validation)" in flag
    overlaps = json.loads((tmp_path / "out" / "report.json").read_text())["overlaps"]
    assert [item["shared"] > 0 for name in ("other", "apart") for item in overlaps[name]] == [True, False]
    assert "report questions (piqa validation)" in (tmp_path / "out" / "report.md").read_text()
    for name, expected in (("other", True), ("apart", False)):
        ran = prunus("evaluate", tmp_path / name, "--tasks", "piqa", "--limit", 20)
        assert ran.code == 0, ran.err
        assert ("of the report questions (piqa validation)" in ran.out.splitlines()[0]) == expected
    assert "questions" not in prunus("evaluate", tmp_path / "other", "--tasks", "piqa", "--limit", 20).out.partition("\n")[2]


def test_prune_says_how_much_of_the_questions_it_measures_it_was_calibrated_on(prunus: Prunus, prose: Prose, tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"goal": " ".join(prose(12, 100 + place).split()), "sol1": "a plum", "sol2": "two pears", "label": 0} for place in range(20)]
    written(tmp_path / "data" / "piqa", train=rows_of("piqa", 4), validation=rows)
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    (tmp_path / "seen.txt").write_text("\n\n".join(f"{row['goal']}, {row['sol1']}." for row in rows) + prose(500, 1), encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('metrics = [{ name = "tasks", names = ["piqa"] }]\nprompts = []\n[[stage]]\n[calibration]\nsamples = 4\nlength = 32\n'
                      f'corpus = "{tmp_path}/seen.txt"\n', encoding="utf-8")
    ran = prunus("prune", saved(tmp_path / "dense", tiny_model()), "--recipe", recipe, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    overlap, = report["overlaps"]
    assert overlap["text"] == "report questions (piqa validation)"
    assert overlap["share"] > 0.5
    assert report["flags"][0].startswith("May be reward-hacked: ")
    assert "report questions (piqa validation)" in (tmp_path / "out" / "README.md").read_text().splitlines()[2]
