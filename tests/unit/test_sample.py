"""Calibration sequences: how many, how long, with or without BOS, from a text or from the model itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.calibration.sample import Calibration, check_length, with_bos
from prunus.errors import CorpusError, RecipeError

from ..tiny import tiny_model, tiny_tokenizer


def test_sequences_have_the_number_and_length_that_were_asked_for(text_file: Path) -> None:
    assert Calibration(str(text_file), samples=5, length=24).tokens(tiny_tokenizer(), tiny_model(), 0).shape == (5, 24)


def test_a_short_text_gives_fewer_sequences(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100)
    assert len(Calibration(str(tmp_path / "a.txt"), samples=50, length=24).tokens(tiny_tokenizer(), tiny_model(), 0)) == 4


def test_what_the_model_writes_comes_behind_the_text_and_depends_on_the_seed(text_file: Path) -> None:
    model, tokenizer, told = tiny_model(), tiny_tokenizer(), []
    alone = Calibration(str(text_file), samples=3, length=24).tokens(tokenizer, model, 0)
    asked = Calibration(str(text_file), samples=3, length=24, written=130)
    found = asked.tokens(tokenizer, model, 0, watch=lambda *said: told.append(said))
    assert torch.equal(found[:3], alone)
    assert torch.equal(found[3:], Calibration("self", samples=130, length=24).tokens(tokenizer, model, 0))
    assert not torch.equal(found[3:], asked.tokens(tokenizer, model, 1)[3:])
    assert {(phase, total) for phase, _, total in told} == {("writing text to calibrate on", 130 * 23)}
    done = [now for _, now, _ in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 130 * 23)


def test_long_sequences_are_written_as_several_documents() -> None:
    model = tiny_model(max_position_embeddings=600)
    found = Calibration("self", samples=2, length=515).tokens(tiny_tokenizer(), model, 0)
    assert found.shape == (2, 515)
    starts = (found == tiny_tokenizer().bos_token_id)[:, ::103]
    assert starts.shape == (2, 5)
    assert bool(starts.all())


def test_an_encoder_writes_nothing(text_file: Path) -> None:
    asked = Calibration(str(text_file), samples=3, length=24, written=2)
    assert len(asked.tokens(tiny_tokenizer(), tiny_model("bert"), 0)) == 3


@pytest.mark.parametrize(("asked", "reason"), [
    ({"written": -1}, "written = -1: .* 0 or more that are written"),
    ({"corpus": "self", "written": 4}, "the model writes it all already. Use samples"),
])
def test_what_cannot_be_written_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        Calibration(**asked)


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


def test_the_model_s_own_text_does_not_obey_what_a_checkpoint_says_of_generation() -> None:
    own, model = Calibration("self", samples=4, length=24), tiny_model()
    expected = own.tokens(tiny_tokenizer(), tiny_model(), 0)
    said = model.generation_config
    said.repetition_penalty, said.no_repeat_ngram_size, said.num_return_sequences = 5.0, 2, 2
    assert torch.equal(own.tokens(tiny_tokenizer(), model, 0), expected)
    assert model.generation_config is said


def test_words_that_the_model_does_not_know_are_refused(text_file: Path) -> None:
    model = tiny_model()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.zeros(100, 32)))
    with pytest.raises(RecipeError, match=r"calibration: the tokenizer gives token \d+, and the model has embeddings for 100 tokens"):
        Calibration(str(text_file), samples=4, length=24).tokens(tiny_tokenizer(), model, 0)


def test_a_model_that_cannot_write_and_a_tokenizer_that_cannot_start_are_refused() -> None:
    with pytest.raises(CorpusError, match="this model cannot generate text"):
        Calibration("self", samples=1, length=4).tokens(tiny_tokenizer(), tiny_model("bert"), 0)
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(CorpusError, match="neither BOS nor EOS"):
        Calibration("self", samples=1, length=4).tokens(tokenizer, tiny_model(), 0)
