"""prunus evaluate: several texts, tasks and prompts, of a model and of the dense one beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunus.evaluation import Context
from prunus.evaluation.fidelity import Fidelity
from prunus.evaluation.tasks import Tasks
from prunus.loading import load

from ..asked import rows_of, written
from .conftest import Ran

Prunus = Callable[..., Ran]
harness = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def pair(checkpoint: Callable[..., Path]) -> tuple[Path, Path]:
    """A dense model and another."""
    return checkpoint(name="dense"), checkpoint(name="other", seed=1)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    written(tmp_path / "piqa", validation=rows_of("piqa"))
    written(tmp_path / "arc_easy", test=rows_of("arc_easy"))
    written(tmp_path / "mt_bench", question=[{"turns": [f"{place}?"]} for place in range(6)])
    return tmp_path


def test_several_texts_are_measured_beside_the_dense_model(prunus: Prunus, pair: tuple[Path, Path], text_file: Path, tmp_path: Path,
                                                           prose: Callable[[int, int], str]) -> None:
    (tmp_path / "other.txt").write_text(prose(800, 5), encoding="utf-8")
    words = ["evaluate", pair[1], "--dense", pair[0], "--corpora", f"{text_file},{tmp_path / 'other.txt'}", "--length", 32, "--tokens", 320]
    ran = prunus(*words)
    assert ran.code == 0, ran.err
    context, metric = Context(load(pair[0]).tokenizer, dense={}), Fidelity((str(text_file),), length=32, tokens=320)
    before = metric.measure(load(pair[0]).model, context)
    after = metric.measure(load(pair[1]).model, context)
    lines = ran.out.splitlines()
    assert len([line for line in lines if line.startswith(("text.txt", "other.txt"))]) == 8
    for old, new in zip(before, after, strict=True):
        (line,) = [line for line in lines if line.startswith(new.label)]
        digits = 2 if new.unit == "perplexity" else 4
        assert f" {old.value:.{digits}f} " in line
        assert f" {new.value:.{digits}f} " in line
        assert new.protocol.removeprefix(new.label) in ran.out
    found = json.loads(prunus(*words, "--json").out)
    assert [row["model"] for row in found] == [str(pair[0])] * 8 + [str(pair[1])] * 8


@harness
def test_tasks_are_measured_with_every_example(prunus: Prunus, pair: tuple[Path, Path], data: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'prunus[tasks]')")
    words = ["evaluate", pair[1], "--tasks", "piqa,arc_easy", "--limit", 10, "--shots", 0]
    ran = prunus(*words)
    assert ran.code == 0, ran.err
    model, tokenizer = load(pair[1])
    piqa, arc = Tasks(("piqa", "arc_easy"), limit=10, shots=0).measure(model, Context(tokenizer))
    for exact in (piqa, arc):
        assert f"{exact.label}  {' ' * (len(arc.label) - len(exact.label))}{exact.value:.4f}" in ran.out
        assert exact.protocol in ran.out.replace("Protocol: ", "")
    assert "task arc_easy: 50 of 50" in ran.err
    rows = json.loads(prunus(*words, "--json").out)
    assert [example["said"] for example in rows[0]["examples"]] == [example.said for example in piqa.examples]
    both = prunus(*words, "--dense", pair[0], "--metric", "acc", "--quiet")
    assert (both.code, both.err) == (0, "")
    assert "difference" in both.out
    assert "piqa acc " in both.out


def test_prompts_are_answered_side_by_side(prunus: Prunus, pair: tuple[Path, Path], data: Path) -> None:
    ran = prunus("evaluate", pair[1], "--dense", pair[0], "--prompts", "mt_bench:2", "--quiet")
    assert ran.code == 0, ran.err
    assert ran.out.count(f"  {pair[0]}: ") == ran.out.count(f"  {pair[1]}: ") == 2


@pytest.mark.parametrize(("words", "reason"), [
    (["--corpora", "builtin", "--task", "glue_sst2"], "--task does not go with --corpora. --task is for models with a head"),
    (["--tasks", "piqa", "--corpus", "builtin"], "--corpus does not go with --tasks"),
    (["--limit", 5], "--limit says nothing without --tasks"),
    (["--tasks", "piqa", "--length", 64], "--length does not go with --tasks"),
    (["--prompts", "nowhere"], "no such file"),
    (["--corpora", "builtin,nowhere"], "corpus 'nowhere' is unknown"),
    (["--corpora", "builtin,builtin"], "every one once"),
])
def test_flags_that_do_not_go_together_are_refused(prunus: Prunus, pair: tuple[Path, Path], words: list[Any], reason: str) -> None:
    ran = prunus("evaluate", pair[0], *words)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
    assert reason in ran.err


@harness
@pytest.mark.parametrize(("words", "reason"), [
    (["--tasks", "pqia"], "Did you mean 'piqa'?"),
    (["--tasks", "piqa", "--limit", 0], "limit = 0"),
    (["--tasks", "piqa", "--execute", "yes"], "expected one of 'off', 'sandbox', 'here'"),
    (["--tasks", "piqa", "--shots", 3], "no file of training examples"),
])
def test_tasks_that_cannot_be_asked_are_refused(prunus: Prunus, pair: tuple[Path, Path], data: Path, words: list[Any], reason: str) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'prunus[tasks]')")
    ran = prunus("evaluate", pair[0], *words)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
    assert reason in ran.err
