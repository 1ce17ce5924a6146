"""What is kept of a model learns from the dense model, and is never made worse."""

import copy
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.calibration.backwards import Backwards
from prunus.calibration.blocks import enter, evaluating, frozen
from prunus.calibration.placement import Placement
from prunus.distillation import distilled_loss
from prunus.errors import RecipeError
from prunus.recovery import distill
from prunus.recovery.distill import Distill
from prunus.recovery.patch import Patch
from prunus.silence import silenced

from ..tiny import branches_of, tiny_model
from .test_reconstruct import OTHERS, TOKENS, distance, narrowed, repaired


def learned(cut: Any, dense: dict[str, torch.Tensor], gone: tuple[int, ...] = (), **settings: Any) -> Any:
    trained = copy.deepcopy(cut)
    recovery = Distill(**{"epochs": 6, "rate": 0.03, "labels": 0.0, "first": Patch(), **settings})
    recovery.recover(trained, describe(trained), [branches_of(trained)[index] for index in gone], dense, TOKENS, Placement(), 8)
    return trained


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "gpt2"])
def test_a_trained_model_predicts_more_like_the_dense_one_than_a_patched_one(family: str) -> None:
    model, cut, dense = narrowed(family)
    assert distance(model, learned(cut, dense)) < distance(model, repaired(cut, Patch(), dense))


def test_families_that_norm_what_is_added_are_trained_without_the_least_squares() -> None:
    model, cut, dense = narrowed("gemma2")
    with pytest.raises(RecipeError, match="normed or scaled before it is added"):
        Distill(first=Patch()).check(model, describe(model), TOKENS, Placement(), 4)
    assert distance(model, learned(cut, dense, first=None)) < distance(model, cut)


def test_branches_that_go_are_made_up_for() -> None:
    model = tiny_model(num_hidden_layers=4)
    assert distance(model, learned(model, {}, (2, 5)), (2, 5)) < distance(model, repaired(model, Patch(), {}, (2, 5)), (2, 5))


def test_the_loss_is_that_of_the_text_and_of_the_dense_models_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained, of the sequences apart; whatever the number of positions that are looked at together."""
    _, cut, dense = narrowed()
    model, tokens = narrowed()[0], TOKENS[:4]
    with torch.no_grad():
        taught, said = (of(input_ids=tokens).logits[:, :-1].flatten(0, 1).log_softmax(-1) for of in (model, cut))
    expected = -(taught.exp() * said).sum(-1).mean() - 0.5 * said.gather(1, tokens[:, 1:].flatten()[:, None]).mean()
    seen: list[float] = []
    loss = distill._Lesson.loss
    monkeypatch.setattr(distill._Lesson, "loss", lambda self, rows: seen.append(loss(self, rows)) or seen[-1])
    for together in (4096, 5):
        monkeypatch.setattr(distill, "positions_at_once", lambda model, rows, together=together: together)
        seen.clear()
        Distill(epochs=1, labels=0.5).recover(copy.deepcopy(cut), describe(cut), (), dense, TOKENS[:8], Placement(), 4)
        assert seen[0] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "gpt2", "qwen3"])
def test_the_gradient_is_that_of_the_whole_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that is gone, two sequences, a few positions at a time."""
    model, tokens = tiny_model(family), TOKENS[:2]
    anatomy, gone = describe(model), branches_of(model)[1:2]
    monkeypatch.setattr(distill, "positions_at_once", lambda model, rows: 5)
    with torch.no_grad(), frozen(model), evaluating(model), ExitStack() as stack:
        states = enter(model, anatomy, tokens, Placement(), 2, stack)
        lesson = distill._Lesson(Distill(labels=0.5), Backwards(model, anatomy, gone, states, Placement(), torch.Generator()),
                                 torch.randn(states.hidden.shape, generator=torch.Generator().manual_seed(0)), tokens)
        given = lesson.model.forward(slice(0, 2))
        slope = torch.zeros_like(given[-1])
        told = lesson._told(slice(0, 2), given[-1], slope)
        found: dict[int, list[Any]] = {}
        lesson.model.backward(given, slope, lesson.trained,
                              lambda depth: found.update({depth: [parameter.grad for parameter in lesson.trained[depth]]}))
        taught = states.leave(model, anatomy, tokens, lesson.taught)
    with silenced(model, gone):
        said = model(input_ids=tokens).logits[:, :-1].flatten(0, 1)
        loss = distilled_loss(said, taught[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), 1.0, 0.5)
        loss.backward()
    assert told == pytest.approx(float(loss.detach()), rel=1e-5)
    for depth, trained in enumerate(lesson.trained):
        for parameter, grad in zip(trained, found[depth], strict=True):
            assert (grad is None) == (parameter.grad is None)
            if grad is not None:
                torch.testing.assert_close(grad, parameter.grad, rtol=1e-3, atol=1e-6)


def test_an_encoder_is_trained_until_its_stream_is_the_dense_models() -> None:
    model, cut, dense = narrowed("bert")
    assert distance(model, learned(cut, dense, first=None)) < distance(model, cut)


def test_steps_smaller_than_a_unit_of_half_precision_add_up() -> None:
    drawn = Backwards.__dict__["_drawn"]
    value = torch.tensor([1.0 + 2**-10, -3.0 - 2**-9, 0.0, 2.0**-20, 300.0]).repeat(20_000, 1)
    for dtype, unit in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
        found = drawn(SimpleNamespace(generator=torch.Generator().manual_seed(0)), value, dtype)
        assert found.dtype == dtype
        if dtype == torch.bfloat16:
            torch.testing.assert_close(found.double().mean(0), value[0].double(), rtol=unit / 50, atol=0)
        assert bool(((found.double() - value.double()).abs() <= unit * value.double().abs().clamp_min(2**-14)).all())
    assert torch.equal(drawn(SimpleNamespace(generator=torch.Generator()), value, torch.float32), value)


def test_zeros_stay_and_word_vectors_and_dtypes_too() -> None:
    _, cut, dense = narrowed(dtype=torch.bfloat16)
    cut.model.layers[0].mlp.down_proj.weight.requires_grad_(False)
    trained = repaired(cut, Distill(epochs=1, rate=1e-3), dense)
    for (name, before), after in zip(cut.named_parameters(), trained.parameters(), strict=True):
        assert not bool(after[before == 0].any()), name
        assert (after.dtype, after.requires_grad, after.grad) == (torch.bfloat16, before.requires_grad, None), name
        assert "layers" in name or torch.equal(before, after), name
    assert not torch.equal(cut.model.layers[1].mlp.up_proj.weight, trained.model.layers[1].mlp.up_proj.weight)


def test_training_that_diverges_is_taken_back() -> None:
    """Weights so large that the loss is no number; of a random model some that are merely wild may by chance have a lower loss."""
    _, cut, dense = narrowed()
    kept, wild = repaired(cut, Patch(0.3), dense), repaired(cut, Distill(epochs=2, rate=1e30, first=Patch(0.3)), dense)
    for (name, expected), found in zip(kept.named_parameters(), wild.named_parameters(), strict=True):
        assert torch.allclose(expected, found[1], atol=1e-6), name


def test_numbers_out_of_range_are_refused() -> None:
    for settings in ({"epochs": 0}, {"rate": 0.0}, {"temperature": 0.0}, {"labels": -1.0}, {"share": 0.0}, {"share": 1.1}):
        with pytest.raises(RecipeError, match=next(iter(settings))):
            Distill(**settings)
    with pytest.raises(RecipeError, match="first = distill: expected patch or reconstruct"):
        Distill(first=Distill())


def test_nothing_is_trained_where_nothing_went() -> None:
    model = tiny_model()
    same = copy.deepcopy(model)
    Distill().recover(same, describe(same), (), {}, OTHERS, Placement(), 4)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), same.parameters(), strict=True))
