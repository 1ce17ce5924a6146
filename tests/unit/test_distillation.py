"""The loss of a distilled network keeps its identities."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from prunus.distillation import UNKNOWN, distilled_loss, garbled, task_loss

from ..problems import generator


def logits(seed: int, rows: int = 6, classes: int = 4) -> Tensor:
    return torch.randn(rows, classes, generator=generator(seed), dtype=torch.float64).float().requires_grad_()


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])


@pytest.fixture
def drawing() -> Iterator[None]:
    """The global generator, as a training has it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_equal_logits_leave_the_teacher_s_entropy_and_no_gradient_of_the_distillation(temperature: float) -> None:
    """CE(p, p) is the entropy of p, its gradient 0; what is left is the gradient of the labels."""
    student = logits(0)
    said = softmax(student.detach() / temperature, 1)
    entropy = -(said * said.log()).sum(1).mean()
    loss = distilled_loss(student, student.detach(), LABELS, temperature)
    assert loss.item() == pytest.approx(float(temperature**2 * entropy + cross_entropy(student, LABELS).detach()), rel=1e-5)
    with_teacher, = torch.autograd.grad(loss, student)
    alone, = torch.autograd.grad(cross_entropy(student, LABELS), student)
    assert float((with_teacher - alone).abs().max()) <= 1e-5


def test_a_teacher_who_is_sure_of_the_labels_is_the_labels_twice() -> None:
    student, sure = logits(0).detach(), 1000.0 * torch.nn.functional.one_hot(LABELS, 4).float()
    assert float(distilled_loss(student, sure, LABELS, 1.0)) == pytest.approx(2 * float(cross_entropy(student, LABELS)), rel=1e-6)


def test_nothing_flows_back_to_the_teacher() -> None:
    student, teacher = logits(0), logits(1)
    distilled_loss(student, teacher, LABELS, 2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_that_of_the_divergence_times_the_temperature_and_the_labels(temperature: float) -> None:
    """d/dz T^2 CE(p, z / T) = T (softmax(z / T) - p), as of T^2 KL, since the teacher's entropy is a constant."""
    student, teacher = logits(0), logits(1).detach()
    found, = torch.autograd.grad(distilled_loss(student, teacher, LABELS, temperature), student)
    said = softmax(teacher / temperature, 1)
    divergence = temperature**2 * kl_div(log_softmax(student / temperature, 1), said, reduction="batchmean")
    expected, = torch.autograd.grad(divergence + cross_entropy(student, LABELS), student)
    by_hand = temperature * (softmax(student / temperature, 1) - said) / len(LABELS) + torch.autograd.grad(
        cross_entropy(student, LABELS), student)[0].detach()
    assert float((found - expected).abs().max()) <= 1e-6
    assert float((found - by_hand).detach().abs().max()) <= 1e-6


def test_at_high_temperatures_the_distillation_keeps_its_size() -> None:
    """T (softmax(z / T) - softmax(t / T)) tends to (z - mean z - t + mean t) / classes: halved by neither 100 nor 200."""
    student, teacher = logits(0), logits(1).detach()
    labels, = torch.autograd.grad(task_loss(student, LABELS), student)
    wide = (student - teacher).detach()
    limit = (wide - wide.mean(1, keepdim=True)) / 4 / len(LABELS)
    for temperature in (100.0, 200.0):
        found, = torch.autograd.grad(distilled_loss(student, teacher, LABELS, temperature), student)
        assert float((found - labels - limit).abs().max()) <= 0.05 * float(limit.abs().max())


def test_of_numbers_it_is_the_squared_error_to_the_teacher_whatever_the_labels() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    for labels in (torch.tensor([0.5, 0.5]), torch.tensor([9.0, -9.0])):
        assert float(distilled_loss(student, teacher, labels, 7.0)) == pytest.approx((1 + 4) / 2)
    assert float(task_loss(student, torch.tensor([1.0, 5.0]))) == pytest.approx(9 / 2)


def test_half_precision_is_computed_in_float32() -> None:
    student = logits(0).detach().bfloat16()
    assert task_loss(student, LABELS).dtype == torch.float32
    assert distilled_loss(student, student, LABELS, 2.0).dtype == torch.float32


def test_the_labels_that_are_known_count_alone() -> None:
    student, teacher, known = logits(0).detach(), logits(1).detach(), torch.tensor([True, False, False, True, False, False])
    taught = float(distilled_loss(student, teacher, LABELS, 2.0, labels=0.0))
    found = float(distilled_loss(student, teacher, torch.where(known, LABELS, UNKNOWN), 2.0, 3.0))
    assert found == pytest.approx(taught + 3 * float(cross_entropy(student[known], LABELS[known])), rel=1e-6)
    assert float(distilled_loss(student, teacher, torch.full_like(LABELS, UNKNOWN), 2.0)) == pytest.approx(taught)


def test_noise_replaces_a_share_of_half_of_the_examples_and_leaves_their_ends(drawing: None) -> None:
    lengths = torch.randint(6, 41, (400,), generator=generator(0))
    read = (torch.arange(40) < lengths[:, None]).long()
    tokens = torch.where(read.bool(), torch.arange(400 * 40).view(400, 40) + 9, 0)
    tokens[:, 0], tokens[:, 3] = 1, 2  # the beginning, and the end of the first of two texts
    tokens[torch.arange(400), lengths - 1] = 2
    found, same = garbled(tokens, read, 0.3)
    gone = found != tokens
    assert not bool((gone & ((read == 0) | (tokens < 9))).any())
    assert set(found[gone].tolist()) <= set(tokens[(tokens >= 9)].tolist())
    assert torch.equal(same, ~gone.any(1))
    assert 0.45 < float(same.float().mean()) < 0.6  # a short one may be spared
    assert float(gone[~same].sum() / (tokens[~same] >= 9).sum()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(garbled(tokens[:, :2], read[:, :2], 0.9)[0], tokens[:, :2])  # nothing is between the ends


def test_of_text_without_ends_every_token_may_be_replaced(drawing: None) -> None:
    tokens = torch.arange(64 * 16).view(64, 16)
    found, same = garbled(tokens, None, 0.5)
    assert bool((found != tokens)[~same][:, [0, -1]].any(0).all())
