"""Another model teaches: its answers are learned beside the labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunus.finetune
from prunus.calibration.tasks import Labelled, Task, encoded
from prunus.distillation import distilled_loss
from prunus.errors import RecipeError
from prunus.finetune import Training, train_supernet
from prunus.loading import load
from prunus.predictions import answers, teachings
from prunus.supernet.distilled import Distilled
from prunus.supernet.one_shot import OneShot
from prunus.supernet.sandwich import Sandwich
from prunus.supernet.standard import Standard

from ..genomes import prefix_of
from ..tiny import tiny_model
from .test_finetune import STILL, assert_equal, moved, text, weights
from .test_tasks import rows_of, written

Checkpoint = Callable[..., Path]


def read_of(folder: Path) -> Labelled:
    return Task(written(folder, rows_of(40)), length=16).read()


def test_a_step_goes_down_the_loss_of_labels_and_teacher(tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_of(tmp_path)
    model, tokenizer = load(checkpoint("bert", **STILL), labels=read.labels)
    data = encoded(read, "train", model, tokenizer)
    said = torch.randn(len(data), 2, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    distilled_loss(model(**data.batch(range(len(data)))).logits, said, data.targets, 3.0).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    monkeypatch.setattr(prunus.finetune, "train_supernet", lambda *given: train_supernet(*given, teacher=said))
    monkeypatch.setattr("tests.unit.test_finetune.train_supernet", prunus.finetune.train_supernet)
    found = moved(monkeypatch, model, None, Distilled(3.0), data, batch=len(data))
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * (1 + float(gradient.abs().max())), name


def test_a_teacher_s_outputs_are_put_in_the_student_s_order(tmp_path: Path, checkpoint: Checkpoint) -> None:
    read = read_of(tmp_path)
    student, tokenizer = load(checkpoint("bert"), labels=read.labels)
    teacher, _ = load(checkpoint("distilbert"), labels=read.labels)
    plain = teachings(teacher, tokenizer, read, student)
    assert torch.equal(plain, answers(teacher, encoded(read, "train", teacher, tokenizer)))
    teacher.config.id2label = {0: read.labels[1], 1: read.labels[0]}
    assert torch.equal(teachings(teacher, tokenizer, read, student), plain.flip(1))


@pytest.mark.parametrize("strategy", [Distilled(), OneShot()], ids=repr)
def test_of_text_the_teacher_is_asked_and_stays_as_it_is(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, teacher, tokens, said = tiny_model(), tiny_model(num_hidden_layers=3, seed=1), text(1), []
    expected = teacher(input_ids=tokens).logits[:, :-1].flatten(0, 1).detach()
    before = weights(teacher)

    def recording(student: Tensor, teacher: Tensor, *rest: Any) -> Tensor:
        said.append(teacher.clone())
        return distilled_loss(student, teacher, *rest)

    monkeypatch.setattr(prunus.finetune, "distilled_loss", recording)
    train_supernet(model, prefix_of(model), strategy, tokens, Training(epochs=3, rate=1e-2), teacher=teacher)
    assert len(said) == (3 if strategy == Distilled() else 9)
    assert all(torch.allclose(one, expected, atol=1e-5) for one in said)
    assert_equal(weights(teacher), before)


def test_a_student_comes_nearer_to_its_teacher_and_labels_alone_do_not_bring_it_there() -> None:
    """In the divergence at the temperature at which it learns: 0.33 at first, 0.28 by the teacher, 0.33 by labels, on random tokens."""
    teacher, tokens = tiny_model(num_hidden_layers=3, seed=1), text()
    target = (teacher(input_ids=tokens).logits.detach() / 2).log_softmax(-1)

    def distance(strategy: Any, said: Any, epochs: int = 10) -> float:
        model = tiny_model()
        if epochs:
            train_supernet(model, None, strategy, tokens, Training(epochs=epochs, batch=8, rate=1e-2), teacher=said)
        with torch.no_grad():
            answered = (model(input_ids=tokens).logits / 2).log_softmax(-1)
        return float((target.exp() * (target - answered)).sum(-1).mean())

    assert distance(Distilled(2.0), teacher) < 0.9 * min(distance(Standard(), None), distance(Standard(), None, 0))


def test_another_teacher_is_another_training(tmp_path: Path) -> None:
    settings = Training(epochs=1, batch=4)
    train_supernet(tiny_model(), None, Distilled(), text(), settings, folder=tmp_path / "kept", teacher=tiny_model(seed=1))
    with pytest.raises(RecipeError, match="holds another training"):
        train_supernet(tiny_model(), None, Distilled(), text(), settings, folder=tmp_path / "kept", teacher=tiny_model(seed=2))


def test_teachers_that_do_not_fit_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    read = read_of(tmp_path)
    model, tokenizer = load(checkpoint("bert"), labels=read.labels)
    data = encoded(read, "train", model, tokenizer)
    for strategy, teacher, reason in [(Distilled(), None, "Distilled learns from another model: expected a teacher"),
                                      (Standard(), torch.zeros(len(data), 2), "Standard learns from labels alone"),
                                      (Sandwich(), torch.zeros(len(data), 2), "Sandwich learns from labels alone"),
                                      (Distilled(), torch.zeros(len(data), 3), "expected 22 examples and 2 outputs")]:
        with pytest.raises(RecipeError, match=reason):
            train_supernet(model, prefix_of(model), strategy, data, teacher=teacher)
    with pytest.raises(RecipeError, match="temperature = 0: expected"):
        Distilled(0.0)
