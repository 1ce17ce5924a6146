"""Calibration sequences: how many, how long, with or without BOS, from a text or from the model itself."""

from pathlib import Path

import pytest
import torch

from prunus.calibration.sample import Calibration, check_length, with_bos
from prunus.errors import CorpusError, RecipeError

from ..tiny import tiny_model, tiny_tokenizer


def test_sequences_have_the_number_and_length_that_were_asked_for(text_file: Path) -> None:
    assert Calibration(str(text_file), samples=5, length=24).tokens(tiny_tokenizer(), tiny_model(), 0).shape == (5, 24)


def test_a_short_text_gives_fewer_sequences(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100)
    calibration = Calibration(str(tmp_path / "a.txt"), samples=50, length=24)
    assert len(calibration.tokens(tiny_tokenizer(), tiny_model(), 0)) == 4
    assert calibration.taking(4).samples == 4


@pytest.mark.parametrize(("adds_bos", "asked", "expected"), [
    (True, None, True), (False, None, False), (True, False, False), (False, True, True), (True, True, True),
])
def test_bos_is_as_asked_or_as_the_tokenizer_does(adds_bos: bool, asked: bool | None, expected: bool) -> None:
    assert with_bos(tiny_tokenizer(bos=adds_bos), asked) is expected


def test_bos_without_a_bos_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert with_bos(tokenizer, None) is False
    with pytest.raises(RecipeError, match="has no BOS token"):
        with_bos(tokenizer, True)


@pytest.mark.parametrize(("samples", "length"), [(0, 8), (-1, 8), (1, 1)])
def test_nothing_to_calibrate_on_is_refused(samples: int, length: int) -> None:
    with pytest.raises(RecipeError, match="expected at least 1 sequence of at least 2 tokens"):
        Calibration(samples=samples, length=length)


def test_sequences_longer_than_the_model_takes_are_refused(text_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"calibration\.length = 129: the model takes at most 128 tokens"):
        Calibration(str(text_file), length=129).tokens(tiny_tokenizer(), tiny_model(), 0)
    check_length(tiny_model(), 128, "length")


@pytest.mark.parametrize("family", ["roberta", "bert", "opt", "gpt2"])
def test_the_longest_length_that_is_allowed_runs_and_the_next_one_is_refused(family: str) -> None:
    """RoBERTa's positions begin after its padding index, so that it takes fewer than its table has."""
    model = tiny_model(family)
    longest = 126 if family == "roberta" else 128
    check_length(model, longest, "length")
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 7))
    with pytest.raises(RecipeError):
        check_length(model, longest + 1, "length")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_the_model_s_own_text_is_decided_by_the_seed_alone(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    own = Calibration("self", samples=18, length=12)
    drawn = own.tokens(tokenizer, model, 3)
    assert drawn.shape == (18, 12)
    assert (drawn[:, 0] == 256).all()
    assert torch.equal(drawn, own.tokens(tokenizer, model, 3))
    assert not torch.equal(drawn, own.tokens(tokenizer, model, 4))
    assert len(drawn.unique(dim=0)) == 18  # not one text sixteen times


def test_a_model_that_cannot_write_and_a_tokenizer_that_cannot_start_are_refused() -> None:
    with pytest.raises(CorpusError, match="this model cannot generate text"):
        Calibration("self", samples=1, length=4).tokens(tiny_tokenizer(), tiny_model("bert"), 0)
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(CorpusError, match="neither BOS nor EOS"):
        Calibration("self", samples=1, length=4).tokens(tokenizer, tiny_model(), 0)
