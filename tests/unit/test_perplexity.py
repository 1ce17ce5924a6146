"""Perplexity is the number that its protocol says, to the last bit that float32 has."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.errors import CorpusError, RecipeError
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity, losses_of

from ..tiny import CAUSAL, tiny_model, tiny_tokenizer

CONTEXT = Context(tiny_tokenizer())


def hand_made(logits: Tensor) -> Any:
    """A model that gives every next token the same logits, whatever came before: its last norm gives (1, 0, 0, …)."""
    model = tiny_model("gpt_neox", max_position_embeddings=512)
    norm, head = model.base_model.final_layer_norm, model.get_output_embeddings()
    norm.weight.data.zero_()
    norm.bias.data.zero_()[0] = 1
    head.weight.data[:, 0] = logits
    return model


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "a.txt").write_text("abab" * 300)
    return str(tmp_path / "a.txt")


def test_a_uniform_model_has_its_vocabulary_s_size_as_perplexity(text: str) -> None:
    measured = Perplexity(text, length=100, tokens=800).measure(hand_made(torch.zeros(260)), CONTEXT)
    assert measured.value == pytest.approx(260, rel=1e-5)
    assert len(measured.parts) == 8


def test_a_model_that_knows_two_letters_has_the_perplexity_of_its_odds(text: str) -> None:
    """p(a) = 3/4, p(b) = 1/4; windows of 101 start with a, then with b: 50 of the 100 predicted letters are a, always."""
    logits = torch.full((260,), -1e4)
    a, b = tiny_tokenizer()("ab")["input_ids"]
    logits[a], logits[b] = math.log(3), 0.0
    measured = Perplexity(text, length=101, tokens=1010).measure(hand_made(logits), CONTEXT)
    exact = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert measured.parts == pytest.approx([exact] * 10, rel=1e-5)
    assert measured.value == pytest.approx(math.exp(exact), rel=1e-5)


def test_a_loss_beyond_all_floats_is_infinite_perplexity_not_an_error(text: str) -> None:
    logits = torch.zeros(260)
    logits[0] = 1e5
    assert Perplexity(text, length=100, tokens=100).measure(hand_made(logits), CONTEXT).value == math.inf


@pytest.mark.parametrize("family", CAUSAL)
def test_it_equals_transformers_own_loss(family: str, text_file: Path) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    measured = Perplexity(str(text_file), length=48, tokens=480).measure(model, Context(tokenizer))
    ids = tokenizer(text_file.read_text())["input_ids"]
    losses = []
    for start in range(0, 480, 48):
        window = torch.tensor([ids[start : start + 48]])
        with torch.no_grad():
            losses.append(float(model(input_ids=window, labels=window).loss))
    assert measured.parts == pytest.approx(losses, rel=1e-5)
    assert measured.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


@pytest.mark.parametrize(("limit", "value"), [("_TOKENS", 3 * 40), ("LOGITS", 7 * 260 * 11), ("LOGITS", 1)])
@pytest.mark.parametrize("family", CAUSAL)
def test_cutting_the_work_into_pieces_changes_nothing_but_rounding(family: str, limit: str, value: int,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.calibration import readout

    model, table = tiny_model(family), torch.arange(7 * 40).view(7, 40) % 256
    together = losses_of(model, table)
    monkeypatch.setattr(readout, limit, value)
    assert losses_of(model, table) == pytest.approx(together, rel=1e-5)


def test_the_model_s_own_forward_is_put_back_even_after_a_failure() -> None:
    model = tiny_model()
    model.lm_head.forward = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        losses_of(model, torch.ones(1, 8, dtype=torch.long))
    assert "forward" not in model.base_model.__dict__


def test_the_model_keeps_its_mode() -> None:
    for training in (True, False):
        model = tiny_model().train(training)
        losses_of(model, torch.ones(1, 8, dtype=torch.long))
        assert model.training is training


def test_full_stride_reads_the_whole_text_and_a_number_of_tokens_its_beginning(text: str) -> None:
    model = tiny_model()
    whole = Perplexity(text, length=100, tokens=0).measure(model, CONTEXT)
    part = Perplexity(text, length=100, tokens=350).measure(model, CONTEXT)
    assert (len(whole.parts), len(part.parts)) == (12, 3)
    assert whole.parts[:3] == pytest.approx(part.parts, rel=1e-6)


def test_bos_is_given_to_every_window_but_never_predicted(text: str) -> None:
    logits = torch.zeros(260)
    logits[256] = -1e4  # predicting BOS would cost ten thousand
    measured = Perplexity(text, length=100, tokens=800, bos=True).measure(hand_made(logits), CONTEXT)
    assert measured.value == pytest.approx(259, rel=1e-5)


def test_the_protocol_says_all_that_another_program_needs(text: str) -> None:
    protocol = Perplexity(text, length=100, tokens=800).measure(tiny_model(dtype=torch.bfloat16), CONTEXT).protocol
    for fact in ("a.txt test perplexity", "text sha256 ", "joined by '\\n\\n'", "first 800 tokens", "8 windows of 100",
                 "stride 100", "no BOS", "bfloat16", "tokenizer of 260 words"):
        assert fact in protocol
    assert "BOS in every window" in Perplexity(text, length=100, tokens=800, bos=True).measure(tiny_model(), CONTEXT).protocol
    assert "full stride" in Perplexity(text, length=100, tokens=0).measure(tiny_model(), CONTEXT).protocol


def test_without_a_split_it_is_test_or_validation_where_there_is_no_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    (tmp_path / "news").mkdir()
    (tmp_path / "news" / "valid.txt").write_text("validation")
    assert Perplexity("news").text().split == "validation"
    (tmp_path / "news" / "test.txt").write_text("test")
    assert Perplexity("news").text().split == "test"
    with pytest.raises(CorpusError, match="no split 'train'"):
        Perplexity("news", "train").text()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_models_that_do_not_predict_the_next_token_are_refused(family: str, text: str) -> None:
    with pytest.raises(RecipeError, match="perplexity needs a model that predicts the next token"):
        Perplexity(text, length=16, tokens=16).measure(tiny_model(family), CONTEXT)


@pytest.mark.parametrize(("settings", "reason"), [
    ({"length": 1}, "length = 1: expected at least 2"), ({"length": 64, "tokens": 63}, "tokens = 63 is less than one window"),
])
def test_windows_that_cannot_be_are_refused(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        Perplexity(**settings)


def test_windows_longer_than_the_model_takes_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"perplexity\.length = 200: the model takes at most 128"):
        Perplexity(text, length=200).measure(tiny_model(), CONTEXT)
