"""prunus search --train: every sub-network is trained by itself, and extract gives what was trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus import alone as trainer
from prunus.calibration.tasks import encoded
from prunus.cli.progress import Screen
from prunus.errors import TrainingError
from prunus.front import Front, Point
from prunus.loading import load
from prunus.predictions import score

from .conftest import Ran, saved, task

Prunus = Callable[..., Ran]


def words_of(model: Path, file: Path, *more: Any) -> list[Any]:
    """45 examples for training, 8 at a time: 6 steps in an epoch."""
    return ["search", model, "--task", task(file), "--space", "medium,steps=3", "--train", "epochs=3,batch=8,rate=3e-3,checkpoint=4", *more,
            "--out"]


def trials_of(run: Path) -> list[dict[str, Any]]:
    """As they are in the log, but for the time that they took."""
    return [{**json.loads(line), "seconds": 0.0} for line in (run / "trials.jsonl").read_text().splitlines()[1:]]


def kept_in(run: Path) -> list[str]:
    return sorted(str(file.relative_to(run / "trained")) for file in (run / "trained").glob("*/*.safetensors"))


def limits(found: Front, point: Point) -> list[str]:
    """Those that leave this point alone, or its equals."""
    return [word for name, value in zip(found.plan.objectives, point.values, strict=True) for word in ("--pick", f"{name}<={value}")]


def test_what_is_extracted_is_what_was_trained(prunus: Prunus, encoder: Path, task_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = prunus(*words_of(encoder, task_file, "--evaluations", 6, "--searcher", "random", "--objectives", "error,params,loss",
                           "--baselines", "layerdrop"), run)
    assert ran.code == 0, ran.err
    found = Front.load(run)
    assert f"training {found.seconds['training']:.1f}" in ran.err
    assert found.seconds["training"] > found.seconds["searching"] > 0
    assert len(found.baselines["layerdrop"]) == 3
    assert len(kept_in(run)) == len({point.candidate for point in (*found.points, found.dense)})
    assert all(name.endswith("weights-0000.safetensors") for name in kept_in(run))
    assert min(point.values[0] for point in found.points) <= 0.1  # an untrained head knows nothing
    for number, point in enumerate(found.points):
        ran = prunus("extract", run, *limits(found, point), "--out", tmp_path / f"small{number}")
        assert ran.code == 0, ran.err
        small = load(tmp_path / f"small{number}")
        for split, value in (("validation", point.values[0]), ("test", point.held_out[0])):
            examples = encoded(found.plan.task.read(), split, small.model, small.tokenizer)  # type: ignore[arg-type, union-attr]
            assert 1 - score(small.model, examples).value == pytest.approx(value)
    ran = prunus("extract", run, "--recovery", "patch", "--out", tmp_path / "no", "--quiet")
    assert (ran.code, "weights of their own training" in ran.err) == (2, True)
    for file in (run / "trained").glob("*/*.safetensors"):
        file.write_bytes(b"")
    ran = prunus("extract", run, "--out", tmp_path / "no", "--quiet")
    assert (ran.code, "missing or damaged" in ran.err, len(ran.err.splitlines())) == (2, True, 1)


def test_halving_goes_on_from_where_a_sub_network_stopped(prunus: Prunus, encoder: Path, task_file: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """In rungs of one, two and three epochs."""
    taken: list[tuple[int, int]] = []
    own = trainer.train_supernet

    def counted(*arguments: Any, watch: Any, **settings: Any) -> Any:
        steps: list[int] = []
        done = own(*arguments, watch=lambda progress: steps.append(progress.done), **settings)
        taken.append((steps[0], done.steps))
        return done

    monkeypatch.setattr(trainer, "train_supernet", counted)
    words = words_of(encoder, task_file, "--searcher", "asha,grace=1,eta=2,longest=3", "--quiet")
    assert prunus(*words, tmp_path / "run", "--evaluations", 12).code == 0
    rows = trials_of(tmp_path / "run")
    assert [row["resource"] for row in rows[:3]] == [1, 1, 1]
    assert {row["resource"] for row in rows} == {1, 2, 3}
    assert taken == [{1: (1, 6), 2: (7, 12), 3: (13, 18)}[row["resource"]] for row in rows]
    found = Front.load(tmp_path / "run")
    values = {(tuple(row["candidate"]), row["resource"]): tuple(row["values"]) for row in rows}
    assert all(values[point.candidate, point.resource] == point.values for point in found.points)
    assert len(kept_in(tmp_path / "run")) == len({(point.candidate, point.resource) for point in (*found.points, found.dense)})
    assert prunus(*words, tmp_path / "run", "--evaluations", 14, "--resume").code == 0  # states are gone, and made again
    assert prunus(*words, tmp_path / "whole", "--evaluations", 14).code == 0
    assert trials_of(tmp_path / "run") == trials_of(tmp_path / "whole")
    assert kept_in(tmp_path / "run") == kept_in(tmp_path / "whole")


@pytest.mark.parametrize("searcher", ["asha,eta=2,longest=3", "nsga2"])
def test_an_interrupted_search_trains_on_to_the_same_result(searcher: str, prunus: Prunus, encoder: Path, task_file: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(encoder, task_file, "--searcher", searcher, "--evaluations", 9, "--quiet")
    assert prunus(*words, tmp_path / "whole").code == 0
    told: list[int] = []

    def stop(screen: Screen, progress: Any) -> None:
        told.append(progress.done)
        if len(told) == 41:  # in the middle of a training
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Screen, "training", stop)
        ran = prunus(*words, tmp_path / "part")
    assert ran.code == 130, ran.err
    assert Front.load(tmp_path / "part").interrupted
    assert 1 < len(trials_of(tmp_path / "part")) < 9
    assert prunus(*words, tmp_path / "part", "--resume").code == 0
    first, second = (Front.load(tmp_path / name) for name in ("whole", "part"))
    assert trials_of(tmp_path / "whole") == trials_of(tmp_path / "part")
    assert (first.points, first.dense) == (second.points, second.dense)
    assert kept_in(tmp_path / "whole") == kept_in(tmp_path / "part")
    assert prunus("extract", tmp_path / "whole", "--out", tmp_path / "one", "--quiet").code == 0
    assert prunus("extract", tmp_path / "part", "--out", tmp_path / "other", "--quiet").code == 0
    one, other = (load(tmp_path / name).model.state_dict() for name in ("one", "other"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    ran = prunus(*words, tmp_path / "part", "--resume", "--train", "epochs=2")
    assert (ran.code, "holds the trials of another search" in ran.err) == (2, True)


def test_a_training_that_fails_is_written_down_and_the_search_goes_on(prunus: Prunus, encoder: Path, task_file: Path, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = trainer.train_supernet, []

    def failing(*arguments: Any, **settings: Any) -> Any:
        done = own(*arguments, **settings)
        calls.append(done)
        if len(calls) in (2, 4):
            raise TrainingError("training: the loss is nan")
        return done

    monkeypatch.setattr(trainer, "train_supernet", failing)
    run = tmp_path / "run"
    ran = prunus(*words_of(encoder, task_file, "--searcher", "random", "--evaluations", 6), run)
    assert ran.code == 0, ran.err
    assert [bool(row["failed"]) for row in trials_of(run)] == [False, True, False, True, False, False]
    assert trials_of(run)[1]["failed"] == "TrainingError: training: the loss is nan"
    book = [json.loads(line) for line in (run / "trained" / "log.jsonl").read_text().splitlines()]
    assert [row["finished"] for row in book] == [True, False, True, False, True, True]
    found = Front.load(run)
    assert found.failed == 2
    assert found.seconds["training"] == pytest.approx(sum(row["seconds"] for row in book))


def test_language_models_are_trained_on_calibration_text(prunus: Prunus, text_file: Path, tmp_path: Path) -> None:
    """The dense one, not trained to speak of, is as far from itself as a search of shared weights says: not at all."""
    model = saved("llama", tmp_path / "llama", num_hidden_layers=2)
    shared = ["search", model, "--space", "medium,steps=3", "--objectives", "divergence,params,loss", "--calibration", text_file,
              "--samples", 8, "--length", 32, "--search-text", "self,samples=8,length=32", "--evaluations", 5, "--searcher", "random",
              "--quiet"]
    assert prunus(*shared, "--out", tmp_path / "shared").code == 0
    ran = prunus(*shared, "--train", "epochs=1,batch=4,rate=1e-12,decay=0.0", "--out", tmp_path / "still")
    assert ran.code == 0, ran.err
    for one, other in zip(trials_of(tmp_path / "shared"), trials_of(tmp_path / "still"), strict=True):
        assert one["candidate"] == other["candidate"]
        assert one["values"] == pytest.approx(other["values"], rel=1e-4, abs=1e-5)
    assert prunus(*shared, "--train", "epochs=4,batch=4,rate=1e-2", "--out", tmp_path / "run").code == 0
    assert trials_of(tmp_path / "run")[0]["values"][0] > 0.01
    assert prunus("extract", tmp_path / "run", "--out", tmp_path / "small", "--quiet").code == 0


@pytest.mark.parametrize(("flags", "reasons"), [
    (["--train", "epoch=3"], ["search.training.epoch: unknown key", "Did you mean 'epochs'?"]),
    (["--train", "3"], ["--train 3: expected key=value, found '3'"]),
    (["--train", "rate=0.0"], ["search.training: rate = 0", "expected a rate"]),
    (["--train", "precision=float16"], ["CPUs do not train in it"]),
    (["--train", "epochs=1", "--baselines", "rfp"], ["'rfp' is retraining-free"]),
    (["--searcher", "asha"], ["none is trained by itself", "--train epochs=5"]),
])
def test_a_training_that_cannot_be(flags: list[str], reasons: list[str], prunus: Prunus, encoder: Path, task_file: Path,
                                   tmp_path: Path) -> None:
    ran = prunus("search", encoder, "--task", task(task_file), "--space", "small", *flags, "--out", tmp_path / "run", "--quiet")
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1, ran.err
    for reason in reasons:
        assert reason in ran.err
    assert not (tmp_path / "run").exists()


def test_training_says_nothing_without_a_space(prunus: Prunus, encoder: Path, tmp_path: Path) -> None:
    ran = prunus("search", encoder, "--train", "epochs=1", "--out", tmp_path / "run", "--quiet")
    assert (ran.code, "--train says nothing without --space" in ran.err) == (2, True)
