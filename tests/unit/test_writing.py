"""A model writes text from its own distribution."""

import pytest
import torch

from prunus.calibration import writing
from prunus.calibration.writing import _Draw, _together, written

from ..problems import generator
from ..tiny import tiny_model, tiny_tokenizer


def test_words_are_drawn_as_often_as_they_are_likely_and_ends_never() -> None:
    scores = torch.tensor([2.0, 0.0, 1.0, 5.0, -1.0, -torch.inf]).expand(40_000, 6)
    drawn = torch.rand(len(scores), 1, generator=generator(0))
    left = _Draw(torch.tensor([3]), drawn, lambda done: None)(torch.empty(len(scores), 1), scores)
    assert torch.equal(left.isfinite().sum(1), torch.ones(len(scores)).long())
    found = torch.bincount(left.argmax(1), minlength=6) / len(scores)
    expected = torch.tensor([2.0, 0.0, 1.0, -torch.inf, -1.0, -torch.inf]).softmax(0)
    assert torch.allclose(found, expected, atol=4 * 0.5 / len(scores) ** 0.5)
    assert bool((found[expected == 0] == 0).all())


@pytest.mark.parametrize("ends", [0, list(range(128))])
def test_a_seed_says_what_is_written_and_no_document_ends_early(ends: int | list[int]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer(bos=True)
    model.generation_config.eos_token_id = ends
    first, again, other = (written(tokenizer, model, 30, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (30, 20)
    assert not bool(torch.isin(first, torch.tensor(ends)).any())
    assert model.generation_config.eos_token_id == ends


def test_how_many_are_written_together_does_not_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model()
    together = written(tokenizer, model, 9, 20, 0)
    for most in (1, 4):
        monkeypatch.setattr(writing, "_TOGETHER", most)
        assert torch.equal(written(tokenizer, model, 9, 20, 0), together)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_keys_and_values_of_what_is_written_together_take_half_of_the_weights(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    cache = model(torch.zeros(1, 20, dtype=torch.long), use_cache=True).past_key_values
    document = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert _together(model, 20) == 128
    monkeypatch.setattr(writing, "_ALWAYS", 3 * document)
    assert _together(model, 20) == max(3, weights // 2 // document)
    monkeypatch.setattr(writing, "_ALWAYS", 100 * document)
    assert _together(model, 20) == 100
    assert _together(model, 10**9) == 1
