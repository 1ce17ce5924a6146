"""prunus evaluate --task: the score of a model with a head; and prunus finetune of pruned models, and by a teacher."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunus.calibration.tasks import Task, encoded
from prunus.loading import load
from prunus.predictions import score

from .conftest import Ran, saved, task

Prunus = Callable[..., Ran]


@pytest.fixture
def trained(prunus: Prunus, encoder: Path, task_file: Path, tmp_path: Path) -> Path:
    assert prunus("finetune", encoder, "--task", task(task_file), "--epochs", 3, "--rate", 3e-3, "--quiet", "--out",
                  tmp_path / "fine").code == 0
    return tmp_path / "fine"


def test_a_score_comes_with_metric_interval_and_protocol(prunus: Prunus, trained: Path, task_file: Path) -> None:
    words = ["evaluate", trained, "--task", task(task_file)]
    ran = prunus(*words)
    assert ran.code == 0, ran.err
    read = Task(str(task_file), length=24).read()
    model, tokenizer = load(trained)
    exact = score(model, encoded(read, "test", model, tokenizer))
    low, high = exact.interval
    assert ran.out.splitlines()[0] == f"{trained}: accuracy {exact.value:.4f} [{low:.4f}, {high:.4f}]"
    assert "over examples" in ran.out
    assert exact.protocol in ran.out
    (row,) = json.loads(prunus(*words, "--json").out)
    assert (row["metric"], row["value"], row["interval"]) == ("accuracy", exact.value, [low, high])
    assert row["said"] == list(exact.said)
    ran = prunus(*words[:-1], f"{words[-1]},metric=f1", "--split", "validation", "--json")
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)
    assert (row["metric"], "validation" in row["protocol"]) == ("f1", True)


def test_a_pruned_model_is_scored_beside_the_dense_one_and_trained_on(prunus: Prunus, trained: Path, task_file: Path,
                                                                      tmp_path: Path) -> None:
    """Depth and width go, blocks differ; a short training brings back what was lost."""
    assert prunus("search", trained, "--task", task(task_file), "--space", "medium,steps=3", "--searcher", "random", "--evaluations", 12,
                  "--out", tmp_path / "run", "--quiet").code == 0
    assert prunus("extract", tmp_path / "run", "--pick", "params<=0.4", "--out", tmp_path / "small", "--quiet").code == 0
    ran = prunus("finetune", tmp_path / "small", "--task", task(task_file), "--epochs", 3, "--rate", 3e-3, "--out", tmp_path / "again")
    assert ran.code == 0, ran.err
    small, again = (load(tmp_path / name).model for name in ("small", "again"))
    assert {name: value.shape for name, value in small.state_dict().items()} == {name: value.shape
                                                                                 for name, value in again.state_dict().items()}
    words = ["evaluate", tmp_path / "again", "--dense", trained, "--task", task(task_file)]
    ran = prunus(*words)
    assert ran.code == 0, ran.err
    first, dense = json.loads(prunus(*words, "--json").out)
    assert f"difference: {first['value'] - dense['value']:.4f} [" in ran.out
    assert first["value"] >= 0.9


def test_answers_that_would_be_drawn_at_random_are_refused(prunus: Prunus, encoder: Path, trained: Path, task_file: Path,
                                                           tmp_path: Path) -> None:
    rows = [json.loads(line) for line in task_file.read_text().splitlines()]
    three = tmp_path / "three.jsonl"
    three.write_text("".join(json.dumps({**row, "label": index % 3}) + "\n" for index, row in enumerate(rows)))
    for words, reason in [
        ([encoder, "--task", task(task_file)], f"model '{encoder}': has no trained head, and task 'fruit.jsonl' has 2 labels (0, 1)"),
        ([trained, "--task", task(three)], "has a head with 2 outputs, and task 'three.jsonl' has 3 labels (0, 1, 2)"),
        ([trained, "--task", task(task_file), "--length", 8], "--length does not go with --task"),
        ([trained, "--task", task(task_file), "--split", "tset"], "Did you mean 'test'?"),
        ([trained, "--task", tmp_path / "nowhere.jsonl"], "nowhere.jsonl"),
    ]:
        ran = prunus("evaluate", *words)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
        assert reason in ran.err


def test_another_model_teaches_a_smaller_one(prunus: Prunus, encoder: Path, trained: Path, task_file: Path, tmp_path: Path) -> None:
    small = saved("distilbert", tmp_path / "distilbert", n_layers=1)
    words = ["finetune", small, "--task", task(task_file), "--epochs", 3, "--rate", 3e-3, "--quiet", "--out"]
    ran = prunus(*words, tmp_path / "taught", "--teacher", trained)
    assert ran.code == 0, ran.err
    assert prunus(*words, tmp_path / "alone").code == 0
    one, other = (load(tmp_path / name).model.state_dict() for name in ("taught", "alone"))
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
    ran = prunus(*words, tmp_path / "super", "--teacher", trained, "--strategy", "one_shot", "--space", "layer")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "super" / "supernet.json").read_text())["training"]["teacher"] == str(trained)
    for settings in ("hidden=1", "noise=0.3"):
        ran = prunus(*words, tmp_path / settings, "--teacher", trained, "--strategy", f"distilled,{settings}", "--no-dropout")
        assert ran.code == 0, ran.err
        assert not torch.equal(load(tmp_path / settings).model.classifier.weight, load(tmp_path / "taught").model.classifier.weight)
    wide, turned = tmp_path / "wide", Path(shutil.copytree(trained, tmp_path / "turned"))
    bare = saved("bert", tmp_path / "bare", hidden_size=64)
    assert prunus("finetune", bare, "--task", task(task_file), "--steps", 1, "--quiet", "--out", wide).code == 0
    config = json.loads((turned / "config.json").read_text())
    (turned / "config.json").write_text(json.dumps({**config, "id2label": {"0": "1", "1": "0"}, "label2id": {"0": 1, "1": 0}}))
    for flags, reason in [(["--teacher", encoder], "has no trained head"), (["--strategy", "distilled"], "expected a teacher"),
                          (["--teacher", trained, "--strategy", "sandwich"], "learns from labels alone"),
                          (["--teacher", tmp_path / "nowhere"], "no such file or folder"),
                          *((["--teacher", turned, "--strategy", f"distilled,{setting}"], "has the labels in another order")
                            for setting in ("hidden=1", "noise=0.1")),
                          (["--teacher", wide, "--strategy", "distilled,hidden=1"], "stream is 64 wide"),
                          (["--teacher", trained, "--space", "layer"], "says nothing with --strategy distilled")]:
        ran = prunus(*words, tmp_path / "no", *flags)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
        assert reason in ran.err
        assert not (tmp_path / "no").exists()


def test_another_language_model_teaches_text(prunus: Prunus, trained: Path, text_file: Path, tmp_path: Path) -> None:
    large, small = (saved("llama", tmp_path / name, num_hidden_layers=depth, seed=depth) for name, depth in (("large", 3), ("small", 1)))
    words = ["finetune", small, "--calibration", text_file, "--samples", 8, "--length", 32, "--epochs", 1, "--quiet", "--out"]
    ran = prunus(*words, tmp_path / "taught", "--teacher", large, "--strategy", "distilled,temperature=4")
    assert ran.code == 0, ran.err
    other = saved("llama", tmp_path / "other", vocab_size=300)
    for teacher, reason in [(trained, "does not predict the next token"), (other, "has another vocabulary")]:
        ran = prunus(*words, tmp_path / "no", "--teacher", teacher)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
        assert reason in ran.err
