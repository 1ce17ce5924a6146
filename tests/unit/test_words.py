"""The gradient of word vectors of a batch's words alone is the one that PyTorch makes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.words import WordVectors

from ..tiny import tiny_model

TOKENS = torch.randint(0, 260, (3, 7), generator=torch.Generator().manual_seed(0))
TOKENS[0, 0] = 1  # which pads, where anything does
OTHERS = TOKENS.flip(0) // 2


def gradient(model: Any, passes: list[Tensor], words: WordVectors | None = None) -> Tensor:
    """Of the word vectors, after several passes backwards; with `words`, through those of the first."""
    model.zero_grad()
    if words is None:
        for tokens in passes:
            model(input_ids=tokens).logits.square().sum().backward()
    else:
        with words.of(passes[0]):
            for tokens in passes:
                model(input_ids=tokens).logits.square().sum().backward()
    found: Tensor = model.get_input_embeddings().weight.grad.clone()
    return found


@pytest.mark.parametrize("family", ["roberta", "distilbert", "bert", "llama"])
def test_the_gradient_is_the_same_also_of_words_that_pad_and_of_tied_tables(family: str) -> None:
    model = tiny_model(family)
    words = WordVectors(model)
    for _ in range(2):  # the second uses the memory of the first
        assert torch.allclose(gradient(model, [TOKENS, TOKENS], words), gradient(model, [TOKENS, TOKENS]), rtol=1e-4, atol=1e-6)


def test_tokens_that_were_not_announced_have_their_gradient_too() -> None:
    model = tiny_model("roberta")
    assert torch.allclose(gradient(model, [TOKENS, OTHERS], WordVectors(model)), gradient(model, [TOKENS, OTHERS]), rtol=1e-4, atol=1e-6)


def test_the_table_is_itself_again_and_frozen_ones_stay_without_a_gradient() -> None:
    model = tiny_model("roberta")
    table = model.get_input_embeddings()
    words = WordVectors(model)
    with pytest.raises(ZeroDivisionError), words.of(TOKENS):
        raise ZeroDivisionError
    assert "forward" not in table.__dict__
    table.weight.requires_grad_(False)
    with WordVectors(model).of(TOKENS):
        model(input_ids=TOKENS).logits.sum().backward()
    assert table.weight.grad is None
