"""A model writes text from its own distribution."""

import pytest
import torch

from prunus.calibration.writing import _Draw, written

from ..tiny import tiny_model, tiny_tokenizer


def test_words_are_drawn_as_often_as_they_are_likely_and_ends_never() -> None:
    scores = torch.tensor([2.0, 0.0, 1.0, 5.0, -1.0, -torch.inf]).expand(40_000, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left = _Draw(torch.tensor([3]))(torch.empty(0), scores)
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
