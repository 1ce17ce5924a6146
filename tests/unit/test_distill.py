"""What is kept of a model learns from the dense model, and is never made worse."""

import copy
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.calibration import readout
from prunus.calibration.placement import Placement
from prunus.errors import RecipeError
from prunus.recovery import distill
from prunus.recovery.distill import Distill
from prunus.recovery.patch import Patch

from ..tiny import branches_of, tiny_model
from .test_reconstruct import OTHERS, TOKENS, distance, narrowed, repaired


def learned(cut: Any, dense: dict[str, torch.Tensor], gone: tuple[int, ...] = (), **settings: Any) -> Any:
    trained = copy.deepcopy(cut)
    recovery = Distill(**{"epochs": 6, "rate": 3e-3, "labels": 0.0, "first": Patch(), **settings})
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
    """Before anything is trained, of the sequences apart."""
    model, cut, dense = narrowed()
    seen: list[float] = []
    loss = distill._Lesson.loss

    def heard(*given: Any) -> torch.Tensor:
        found = loss(*given)
        seen.append(float(found.detach()))
        return found

    monkeypatch.setattr(distill._Lesson, "loss", heard)
    recovery = Distill(epochs=1, labels=0.5)
    recovery.recover(copy.deepcopy(cut), describe(cut), (), dense, TOKENS[:8], Placement(), 4)
    tokens = TOKENS[:4]
    with torch.no_grad():
        taught, said = (of(input_ids=tokens).logits[:, :-1].flatten(0, 1).log_softmax(-1) for of in (model, cut))
    expected = -(taught.exp() * said).sum(-1).mean() - 0.5 * said.gather(1, tokens[:, 1:].flatten()[:, None]).mean()
    assert seen[0] == pytest.approx(float(expected), rel=1e-4)


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


def test_encoders_and_numbers_out_of_range_are_refused() -> None:
    model = tiny_model("bert")
    with pytest.raises(RecipeError, match="predicts no next token"):
        Distill().check(model, describe(model), TOKENS, Placement(), 4)
    for settings in ({"epochs": 0}, {"rate": 0.0}, {"temperature": 0.0}, {"labels": -1.0}):
        with pytest.raises(RecipeError, match=next(iter(settings))):
            Distill(**settings)
    with pytest.raises(RecipeError, match="first = distill: expected patch or reconstruct"):
        Distill(first=Distill())


def test_nothing_is_trained_where_nothing_went() -> None:
    model = tiny_model()
    same = copy.deepcopy(model)
    Distill().recover(same, describe(same), (), {}, OTHERS, Placement(), 4)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), same.parameters(), strict=True))


def test_a_head_that_cannot_run_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(readout, "logits_of", lambda *given: None)
    with pytest.raises(RecipeError, match=r"head of a LlamaForCausalLM cannot be run alone\. Use reconstruct"):
        Distill().check(model, describe(model), TOKENS, Placement(), 4)


def test_what_is_computed_part_by_part_has_the_gradient_of_the_whole() -> None:
    given = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seen: list[slice] = []

    def part(some: torch.Tensor, rows: slice) -> torch.Tensor:
        seen.append(rows)
        return (some**3).sum()

    assert torch.autograd.gradcheck(lambda value: distill._InParts.apply(value, part, 4), (given,))
    assert seen[:3] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with torch.no_grad():
        assert distill._InParts.apply(given, part, 4) == pytest.approx(float((given**3).sum()))
