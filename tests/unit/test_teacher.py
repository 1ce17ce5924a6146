"""Another model teaches: its answers are learned beside the labels."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunus.finetune
from prunus.calibration.blocks import hidden_of
from prunus.calibration.tasks import Labelled, Task, encoded
from prunus.distillation import distilled_loss, garbled, streams_apart, task_loss
from prunus.errors import RecipeError
from prunus.finetune import Training, train_supernet
from prunus.loading import load
from prunus.predictions import answers, teachings
from prunus.streams import Streams
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


@pytest.mark.parametrize("hidden", [0.0, 10.0])
def test_a_step_goes_down_the_loss_of_labels_and_teacher(hidden: float, tmp_path: Path, checkpoint: Checkpoint,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """And, where the streams count too, down how far they are from the teacher's at tokens that are no padding."""
    read = read_of(tmp_path)
    model, tokenizer = load(checkpoint("bert", **STILL), labels=read.labels)
    teacher = load(checkpoint("bert", **STILL, seed=1), labels=read.labels).model
    data = encoded(read, "train", model, tokenizer)
    given = data.batch(range(len(data)))
    ours, theirs = (one(**given, output_hidden_states=True) for one in (model, teacher))
    mask = given["attention_mask"].bool()
    assert not mask.all()
    apart = [((a - b).square().sum(-1) / b.square().sum(-1))[mask].mean()
             for a, b in zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True)]
    model.zero_grad()
    (distilled_loss(ours.logits, theirs.logits, data.targets, 3.0) + hidden * sum(apart) / len(apart)).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    taught = teacher if hidden else theirs.logits.detach()
    monkeypatch.setattr(prunus.finetune, "train_supernet", lambda *given: train_supernet(*given, teacher=taught))
    monkeypatch.setattr("tests.unit.test_finetune.train_supernet", prunus.finetune.train_supernet)
    found = moved(monkeypatch, model, None, Distilled(3.0, hidden), data, batch=len(data))
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


def test_the_streams_come_nearer_to_the_teacher_s_where_they_count() -> None:
    """From 2.5 of its squares to 0.8 with them, and to 3.9 without, on random tokens."""
    teacher, tokens = tiny_model(seed=1), text()

    def distance(hidden: float) -> float:
        model = tiny_model()
        train_supernet(model, None, Distilled(2.0, hidden), tokens, Training(epochs=10, batch=8, rate=1e-2), teacher=teacher)
        streams = Streams(model, teacher)
        with torch.no_grad(), streams.heard():
            model(input_ids=tokens), teacher(input_ids=tokens)
            return float(streams.apart(None))

    assert distance(10.0) < 0.6 * distance(0.0)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_has_another_number_of_blocks_learns_from_the_last_alone(depth: int) -> None:
    model, teacher, tokens = tiny_model(num_hidden_layers=depth), tiny_model(seed=1), text()
    kept: dict[tuple[int, int], Tensor] = {}
    for place, one in enumerate((model, teacher)):
        for number, block in enumerate(one.model.layers):
            block.register_forward_hook(lambda _, __, gives, key=(place, number): kept.update({key: hidden_of(gives)}))
    streams = Streams(model, teacher)
    with torch.no_grad(), streams.heard():
        model(input_ids=tokens), teacher(input_ids=tokens)
        found = streams.apart(None)
    pairs = [(0, 0), (1, 1)] if depth == 2 else [(depth - 1, 1)]
    assert torch.equal(found, streams_apart([kept[0, ours] for ours, _ in pairs], [kept[1, theirs] for _, theirs in pairs]))


def test_of_examples_with_noise_the_teacher_alone_says_what_they_are(tmp_path: Path, checkpoint: Checkpoint,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_of(tmp_path)
    model, tokenizer = load(checkpoint("bert", **STILL), labels=read.labels)
    teacher = load(checkpoint("bert", **STILL, seed=1), labels=read.labels).model
    data = encoded(read, "train", model, tokenizer)
    found: list[tuple[Tensor, Tensor]] = []

    def recording(*given: Any) -> tuple[Tensor, Tensor]:
        found.append(garbled(*given))
        return found[-1]

    monkeypatch.setattr(prunus.finetune, "garbled", recording)
    monkeypatch.setattr("tests.unit.test_finetune.train_supernet", lambda *given: train_supernet(*given, teacher=teacher))
    gradients = moved(monkeypatch, model, None, Distilled(3.0, noise=0.5), data, batch=len(data))
    (tokens, same), = found
    assert 0 < int(same.sum()) < len(data)
    model, given = load(checkpoint("bert", **STILL), labels=read.labels).model, data.batch(range(len(data)))
    order = [next(row for row in range(len(data)) if torch.equal(given["input_ids"][row], other)) for other in tokens[same]]
    others = {**given, "input_ids": tokens, "attention_mask": tokens != data.padding}
    ours, theirs = model(**others).logits, teacher(**others).logits
    expected = distilled_loss(ours, theirs, data.targets, 3.0, labels=0.0) + task_loss(ours[same], data.targets[order])
    expected.backward()
    for name, parameter in model.named_parameters():
        assert float((gradients[name] - parameter.grad).abs().max()) <= 1e-5 * (1 + float(parameter.grad.abs().max())), name


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
                                      (Distilled(), torch.zeros(len(data), 3), "expected 22 examples and 2 outputs"),
                                      (Distilled(noise=0.1), torch.zeros(len(data), 2), "Expected the teacher itself, or noise=0"),
                                      (Distilled(hidden=1.0), torch.zeros(len(data), 2), "Expected the teacher itself, or hidden=0")]:
        with pytest.raises(RecipeError, match=reason):
            train_supernet(model, prefix_of(model), strategy, data, teacher=teacher)
    for settings, reason in [({"temperature": 0.0}, "temperature = 0: expected"), ({"hidden": -1.0}, "hidden = -1: expected 0 or more"),
                             ({"hidden": math.inf}, "hidden = inf: expected 0 or more"),
                             ({"noise": 1.0}, "noise = 1: expected a share"), ({"noise": -0.1}, "noise = -0.1: expected a share")]:
        with pytest.raises(RecipeError, match=reason):
            Distilled(**settings)
    wide = tiny_model(hidden_size=64)
    with pytest.raises(RecipeError, match=r"stream is 64 wide and the model's 32.*hidden=0"):
        train_supernet(tiny_model(), None, Distilled(hidden=1.0), text(), teacher=wide)
