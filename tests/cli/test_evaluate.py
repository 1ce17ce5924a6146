"""prunus evaluate: several texts, tasks and prompts, of a model and of the dense one beside it."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.comparing.averages import with_mean
from prunus.evaluation import Context
from prunus.evaluation.fidelity import Fidelity
from prunus.evaluation.tasks import Tasks
from prunus.loading import load

from ..asked import rows_of, written
from ..tiny import tiny_model, tiny_tokenizer
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
    told = [prunus(*order, "--corpora", text_file, "--length", 32, "--tokens", 2048).out.splitlines()
            for order in (words[:4], ["evaluate", pair[0], "--dense", pair[1]])]
    assert ["May be reward-hacked: text.txt" in lines[0] for lines in told].count(True) == 1  # of two, one is better than "dense"
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
    for exact in (piqa, arc, with_mean((piqa, arc))[-1]):
        assert f"{exact.label:17}  {exact.value:.4f}" in ran.out
        assert exact.protocol in ran.out.replace("Protocol: ", "")
    assert "task arc_easy: 50 of 50" in ran.err
    rows = json.loads(prunus(*words, "--json").out)
    assert [example["said"] for example in rows[0]["examples"]] == [example.said for example in piqa.examples]
    both = prunus(*words, "--dense", pair[0], "--metric", "acc", "--quiet")
    assert (both.code, both.err) == (0, "")
    assert "difference" in both.out
    assert "piqa acc " in both.out
    assert "mean of 2 tasks" in both.out


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


def test_models_that_read_other_tokens_are_no_pair_on_texts(prunus: Prunus, pair: tuple[Path, Path]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["plum"])
    tokenizer.save_pretrained(pair[1])
    for flags in (["--corpora", "builtin"], ["--corpus", "builtin"]):
        ran = prunus("evaluate", pair[1], "--dense", pair[0], *flags, "--length", 32, "--tokens", 320)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1), ran.err
        assert "their tokenizers differ (tokenizer of 260 words " in ran.err


@harness
def test_a_tokenizer_of_another_model_is_told_in_one_line(prunus: Prunus, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["plum"])
    tokenizer.save_pretrained(pair[1])
    (tmp_path / "plums.txt").write_text("a plum " * 200)
    words = [["--corpora", tmp_path / "plums.txt", "--length", 32, "--tokens", 320]]
    words += [["--tasks", "piqa"]] if importlib.util.find_spec("lm_eval") else []
    for flags in words:
        ran = prunus("evaluate", pair[1], *flags, "--quiet")
        assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
        assert "the tokenizer gives token 260, and the model has embeddings for 260 tokens" in ran.err


@harness
def test_a_ruined_model_is_told_before_its_numbers(prunus: Prunus, pair: tuple[Path, Path], data: Path) -> None:
    """A model whose likelihoods are no numbers still chooses answers, and a mean of losses that are none is not infinite."""
    ruined = tiny_model()
    with torch.no_grad():
        ruined.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    ruined.save_pretrained(pair[1])
    ran = prunus("evaluate", pair[1], "--dense", pair[0], "--corpora", "builtin", "--length", 32, "--tokens", 320, "--quiet")
    first, _, line, *_ = ran.out.splitlines()
    assert first.startswith(f"{pair[1]} is ruined or overflows: builtin test perplexity is not finite in 10 of 10 windows")
    assert line.split()[4:7] == ["nan", "nan", "[nan,"]
    assert "is ruined or overflows" in prunus("evaluate", pair[1], "--corpus", "builtin", "--length", 32, "--tokens", 320).out
    if importlib.util.find_spec("lm_eval"):
        ran = prunus("evaluate", pair[1], "--tasks", "piqa", "--quiet")
        assert ran.out.startswith(f"{pair[1]} is ruined or overflows: piqa acc_norm is not finite in 12 of 12")
        ran = prunus("evaluate", pair[1], "--dense", pair[0], "--tasks", "piqa,arc_easy", "--shots", 0, "--quiet")
        assert ran.code == 0, ran.err
        assert "and 2 other numbers neither" in ran.out.splitlines()[0]
