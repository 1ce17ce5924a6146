"""A training adds up what it should, and leaves the model as one finds it."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunus.finetune
from prunus.calibration.tasks import Encoded, Task, encoded
from prunus.distillation import distilled_loss, task_loss
from prunus.errors import CalibrationError, CorpusError, MissingExtra, RecipeError, TrainingError
from prunus.finetune import Training, TrainingProgress, train_supernet
from prunus.loading import load
from prunus.predictions import answers, score
from prunus.search.sampling import Sampling
from prunus.supernet.one_shot import OneShot
from prunus.supernet.random import Random
from prunus.supernet.sandwich import Sandwich
from prunus.supernet.standard import Standard

from ..genomes import prefix_of
from ..problems import generator
from ..tiny import CAUSAL, FAMILIES, WORDS, branches_of, tiny_model
from .test_tasks import rows_of, written

Checkpoint = Callable[..., Path]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def text(samples: int = 8, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(WORDS, (samples, length), generator=generator(seed))


def task(folder: Path, checkpoint: Checkpoint, family: str = "bert", count: int = 40, **settings: Any) -> tuple[Any, Encoded]:
    """The label says whether the sentence has the word "plum" in it."""
    rows = [{**row, "sentence": f"plum {row['sentence']}" if row["label"] else row["sentence"]} for row in rows_of(count)]
    read = Task(written(folder, rows), length=16).read()
    model, tokenizer = load(checkpoint(family, **settings), labels=read.labels)
    return model, encoded(read, "train", model, tokenizer)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


PARETO = OneShot(sampling=Sampling(by="pareto", pool=3))


class Steepest(torch.optim.SGD):
    """A step is the gradient itself, times the rate."""

    def __init__(self, parameters: Any, lr: float, **others: Any) -> None:
        super().__init__(parameters, lr=lr)


def moved(monkeypatch: pytest.MonkeyPatch, model: Any, *arguments: Any, **settings: Any) -> dict[str, Tensor]:
    """The gradient that one step took."""
    monkeypatch.setattr(torch.optim, "AdamW", Steepest)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_supernet(model, *arguments, Training(**{"steps": 1, "rate": 1.0, **settings}))
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


def test_a_step_takes_the_gradients_of_all_its_networks(tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense model from labels, the smallest and two others from it, added up by hand."""
    model, data = task(tmp_path, checkpoint, **STILL)
    genome, nets = prefix_of(model), [(0, 0, 0), (1, 1, 5), (0, 2, 30)]

    class Mine:
        def draw(self, *_: Any) -> list[Any]:
            return nets[1:]

    strategy = OneShot(temperature=3.0)
    object.__setattr__(strategy, "sampling", Mine())
    rows = list(range(len(data)))
    targets = data.targets
    model.zero_grad()
    dense = model(**data.batch(rows)).logits
    task_loss(dense, targets).backward()
    for candidate in nets:
        with genome.worn(model, candidate):
            distilled_loss(model(**data.batch(rows)).logits, dense, targets, 3.0).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    found = moved(monkeypatch, model, genome, strategy, data, batch=len(rows))
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * (1 + float(gradient.abs().max())), name


@pytest.mark.parametrize("strategy", [OneShot(), Sandwich()], ids=repr)
def test_batches_that_are_accumulated_are_one_large_batch(strategy: Any, tmp_path: Path, checkpoint: Checkpoint,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """22 examples as 22, and as 4 times 5 and 2: the last counts for less."""
    found = []
    for settings in ({"batch": 22}, {"batch": 5, "accumulate": 5}):
        model, data = task(tmp_path, checkpoint, **STILL)
        assert len(data) == 22
        found.append(moved(monkeypatch, model, prefix_of(model), strategy, data, **settings))
    for name, gradient in found[0].items():
        assert float((found[1][name] - gradient).abs().max()) <= 1e-5 * (1 + float(gradient.abs().max())), name


def test_the_loss_of_text_is_that_of_the_model_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, model, seen = text(4), tiny_model(), []
    expected = float(model(input_ids=tokens, labels=tokens).loss.detach())
    train_supernet(model, None, Standard(), tokens, Training(steps=1, batch=4), watch=seen.append)
    assert seen[0].loss == pytest.approx(expected, rel=1e-5)


def test_the_rate_is_that_of_transformers() -> None:
    from transformers import get_linear_schedule_with_warmup

    for warmup, steps in ((0.0, 7), (0.3, 10)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        schedule = get_linear_schedule_with_warmup(optimizer, round(warmup * steps), steps)
        for step in range(steps):
            assert Training(rate=0.5, warmup=warmup).rate_at(step, steps) == pytest.approx(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()


def test_every_epoch_reads_every_example_once_in_another_order(tmp_path: Path, checkpoint: Checkpoint,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = task(tmp_path, checkpoint)
    read: list[int] = []
    own = Encoded.batch
    monkeypatch.setattr(Encoded, "batch", lambda self, which, device="cpu": (read.extend(which), own(self, which, device))[1])
    done = train_supernet(model, None, Standard(), data, Training(epochs=2, batch=4))
    assert done.steps == done.passes == 12
    first, second = read[:22], read[22:]
    assert sorted(first) == sorted(second) == list(range(22))
    assert first != second


def test_progress_says_how_far_and_how_long(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, data = task(tmp_path, checkpoint)
    seen: list[TrainingProgress] = []
    done = train_supernet(model, None, Standard(), data, Training(epochs=2, batch=8), watch=seen.append)
    assert [(item.done, item.total, item.epoch) for item in seen] == [(1, 6, 0), (2, 6, 0), (3, 6, 0), (4, 6, 1), (5, 6, 1), (6, 6, 1)]
    assert seen[-1].remaining == 0.0
    assert all(one.seconds < other.seconds for one, other in pairwise(seen))
    assert done.losses == pytest.approx([sum(item.loss for item in seen[:3]) / 3, sum(item.loss for item in seen[3:]) / 3])
    assert train_supernet(model, None, Standard(), data, Training(epochs=9, steps=4, batch=8)).steps == 4


def test_a_task_is_learned_and_small_networks_learn_it_better_where_they_are_trained(tmp_path: Path, checkpoint: Checkpoint) -> None:
    scores, losses = [], []
    for strategy in (Standard(), OneShot()):
        model, data = task(tmp_path, checkpoint, count=120)
        genome = prefix_of(model)
        train_supernet(model, genome, strategy, data, Training(epochs=15, batch=8, rate=3e-3))
        with genome.worn(model, genome.smallest):
            losses.append(float(task_loss(answers(model, data), data.targets)))
        scores.append(score(model, data).value)
    assert min(scores) >= 0.95
    assert losses[1] < losses[0] / 2


def test_numbers_are_learned(tmp_path: Path, checkpoint: Checkpoint) -> None:
    rows = [{**row, "sentence": f"plum {row['sentence']}" if row["label"] else row["sentence"], "label": row["label"] + 0.5}
            for row in rows_of(160)]
    read = Task(written(tmp_path, rows), length=16, metric="pearson").read()
    model, tokenizer = load(checkpoint("bert"), labels=read.labels)
    data = encoded(read, "train", model, tokenizer)
    done = train_supernet(model, prefix_of(model), OneShot(), data, Training(epochs=20, batch=8, rate=3e-3))
    assert done.losses[-1] < done.losses[0] / 2
    assert score(model, data).value > 0.85


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_a_head_is_trained(family: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, data = task(tmp_path, checkpoint, family)
    before = answers(model, data)
    done = train_supernet(model, prefix_of(model), OneShot(), data, Training(steps=2, batch=8, rate=1e-3))
    assert done.passes == 8
    assert float((answers(model, data) - before).abs().max()) > 1e-3


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("rank", [0, 2])
def test_every_family_that_predicts_is_trained_whole_or_by_adapters(family: str, rank: int) -> None:
    model, before = tiny_model(family), tiny_model(family)
    train_supernet(model, prefix_of(model), OneShot(teacher="frozen"), text(), Training(epochs=2, batch=4, rate=1e-2, rank=rank))
    ours, theirs = weights(model), weights(before)
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert ours.keys() == theirs.keys()
    if rank:
        matrices = {f"{site.name}.weight" for site in prune_sites(before)}
        assert changed == matrices
        for name in matrices:
            assert int(torch.linalg.matrix_rank((ours[name] - theirs[name]).double(), atol=1e-5)) <= 2
    else:
        assert model.get_input_embeddings().weight.requires_grad
        assert len(changed) > len(ours) // 2


def prune_sites(model: Any) -> Any:
    from prunus.anatomy import describe

    return describe(model).sites("linear")


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("teacher", ["frozen", "inplace"])
def test_a_frozen_teacher_stays_as_the_model_was(teacher: Any, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, said = tiny_model(), text(1), []
    dense = model(input_ids=tokens).logits[:, :-1].flatten(0, 1).detach()

    def recording(student: Tensor, teacher: Tensor, *rest: Any) -> Tensor:
        said.append(teacher.clone())
        return distilled_loss(student, teacher, *rest)

    monkeypatch.setattr(prunus.finetune, "distilled_loss", recording)
    train_supernet(model, prefix_of(model), OneShot(teacher=teacher), tokens, Training(epochs=4, rate=1e-2, rank=rank))
    assert len(said) == 12
    assert float((said[0] - dense).abs().max()) <= 1e-5
    assert (float((said[-1] - dense).abs().max()) <= 1e-5) == (teacher == "frozen")


def test_a_head_is_trained_beside_adapters(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, data = task(tmp_path, checkpoint)
    before = weights(model)
    train_supernet(model, prefix_of(model), OneShot(teacher="frozen"), data, Training(steps=3, rate=1e-2, rank=2))
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert {"classifier.weight", "classifier.bias"} <= changed
    assert "bert.embeddings.word_embeddings.weight" not in changed


def test_a_network_without_any_adapter_teaches_nothing_and_does_no_harm() -> None:
    """All branches silent: nothing that is trained is left."""
    model = tiny_model()

    class Empty:
        sizes, smallest, largest = (2,), (0,), (1,)

        def draw(self, rng: Any) -> tuple[int, ...]:
            return (0,)

        def remaining(self, candidate: Any) -> float:
            return float(candidate[0])

        def worn(self, model: Any, candidate: Any) -> Any:
            from prunus.silence import silenced

            return silenced(model, branches_of(tiny_model()))

    done = train_supernet(model, Empty(), Random(), text(), Training(steps=2, rank=2))
    assert done.passes == 4
    assert_equal(weights(model), weights(tiny_model()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_in_float32_while_they_are_trained_and_in_their_own_dtype_afterwards(dtype: torch.dtype) -> None:
    """The result is that of the same numbers in float32, rounded once; steps of 1e-4 would be lost in bfloat16."""
    small, wide = tiny_model(dtype=dtype), tiny_model(dtype=dtype).float()
    held: set[torch.dtype] = set()
    settings = Training(epochs=3, batch=4, rate=1e-4)
    train_supernet(small, prefix_of(small), OneShot(), text(), settings,
                   watch=lambda _: held.update(parameter.dtype for parameter in small.parameters()))
    train_supernet(wide, prefix_of(wide), OneShot(), text(), settings)
    assert held == {torch.float32}
    for mine, theirs in zip(small.parameters(), wide.parameters(), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs.to(dtype))


def test_mixed_precision_is_near_to_full_and_both_run_in_one_process() -> None:
    """Whatever another library has told Accelerate, and it is told so again."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    losses = {}
    theirs = Accelerator(cpu=True, mixed_precision="no")
    for precision in ("float32", "bfloat16", "float32"):
        model = tiny_model()
        done = train_supernet(model, prefix_of(model), OneShot(), text(), Training(epochs=2, precision=precision))  # type: ignore[arg-type]
        losses.setdefault(precision, done.losses)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-2)
    assert losses["bfloat16"] != losses["float32"]
    assert theirs.state.mixed_precision == "no"
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_a_loss_that_is_no_number_ends_the_training_and_the_model_is_itself() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    model.model.norm.weight.data.fill_(3e38)
    with pytest.raises(TrainingError, match=r"training: the loss of the dense model is (nan|inf) in step 1 of 5\. Use") as error:
        train_supernet(model, prefix_of(model), OneShot(), text(), Training())
    assert "\n" not in str(error.value)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    model.model.norm.weight.data[3] = float("inf")
    with pytest.raises(CalibrationError, match=r"^model\.norm\.weight: 1 of its 32 weights are not finite"):
        train_supernet(model, prefix_of(model), OneShot(), text(), Training())


def test_requires_grad_and_the_mode_are_as_they_were() -> None:
    model = tiny_model().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    for rank in (0, 2):
        train_supernet(model, prefix_of(model), OneShot(), text(), Training(steps=1, rank=rank))
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["lm_head.weight"]
        assert not model.training


def test_looks_are_counted_and_a_seed_decides(tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        model = tiny_model()
        done = train_supernet(model, prefix_of(model), PARETO, text(), Training(epochs=1, batch=4, seed=seed))
        assert (done.steps, done.passes, done.looks) == (2, 8, 6)
        found.append(weights(model)["lm_head.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_parts_that_do_not_go_together_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, data = task(tmp_path, checkpoint)
    for arguments, reason in [
        ((model, None, OneShot(), data), "strategy OneShot trains sub-networks: expected a search space"),
        ((tiny_model("bert"), None, Standard(), data), "needs a model with a head, and this is a BertForMaskedLM"),
        ((model, None, Standard(), text()), "text trains a model that predicts the next token, and this is a BertForSeq"),
    ]:
        with pytest.raises(RecipeError, match=reason):
            train_supernet(*arguments)
    with pytest.raises(RecipeError, match="precision = 'float16': CPUs do not train in it"):
        train_supernet(model, None, Standard(), data, Training(precision="float16"))
    with pytest.raises(CorpusError, match="there is no example"):
        train_supernet(tiny_model(), None, Standard(), text(0))


@pytest.mark.parametrize(("package", "what", "rank"), [("accelerate", "training", 0), ("peft", "LoRA", 2)])
def test_what_is_not_installed_is_named(package: str, what: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"^{what} needs an optional package that is not installed: pip install 'prunus\[train\]'"):
        train_supernet(tiny_model(), None, Standard(), text(), Training(rank=rank))


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"batch": 0}, {"accumulate": 0}, {"checkpoint": 0}, {"steps": -1}, {"rank": -1},
                                      {"rate": 0.0}, {"rate": float("nan")}, {"warmup": 1.0}, {"decay": -1.0}, {"clip": -1.0},
                                      {"alpha": 0.0}])
def test_settings_that_make_no_sense_are_refused(settings: Any) -> None:
    with pytest.raises(RecipeError, match="expected"):
        Training(**settings)


def test_dropout_can_be_left_out(tmp_path: Path, checkpoint: Checkpoint) -> None:
    ended = []
    for chance, dropout in ((0.0, True), (0.5, False), (0.5, True)):
        model, data = task(tmp_path, checkpoint, hidden_dropout_prob=chance, attention_probs_dropout_prob=chance)
        model.train()
        train_supernet(model, None, Standard(), data, Training(steps=2, rate=1e-2, dropout=dropout))
        assert model.training  # as it was
        ended.append(weights(model))
    assert_equal(ended[0], ended[1])
    assert not torch.equal(ended[1]["classifier.weight"], ended[2]["classifier.weight"])
