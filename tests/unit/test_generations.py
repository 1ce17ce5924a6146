"""The same prompts are answered greedily, so that only the model can make a difference."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.errors import PrunusError
from prunus.generations import generate, prompts_of

from ..asked import written
from ..tiny import CAUSAL, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("family", CAUSAL)
def test_answers_are_greedy_continuations_without_the_prompt(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    (answer,) = generate(model, tokenizer, ("a cherry",), tokens=6)
    ids = tokenizer("a cherry", return_tensors="pt")["input_ids"]
    for _ in range(6):
        with torch.no_grad():
            following = model(input_ids=ids).logits[0, -1].argmax()
        if int(following) == 257:
            break
        ids = torch.cat([ids, following.view(1, 1)], dim=1)
    assert answer == tokenizer.decode(ids[0, len("a cherry") :], skip_special_tokens=True)


def test_sampling_settings_of_a_checkpoint_are_not_used_and_nothing_is_warned_about() -> None:
    model = tiny_model()
    model.generation_config.do_sample, model.generation_config.temperature, model.generation_config.top_k = True, 1.7, 9
    assert generate(model, tiny_tokenizer(), ("a", "b"), 5) == generate(tiny_model(), tiny_tokenizer(), ("a", "b"), 5)


def test_models_that_do_not_generate_have_no_answers() -> None:
    assert generate(tiny_model("bert"), tiny_tokenizer(), ("a",)) == ()


QUESTIONS = [{"question_id": place, "turns": [f"{place}?", "and then?"]} for place in range(20)]
ORDERS = [{"instruction": "Say it.", "input": "a plum"}, {"instruction": "Hum.", "input": ""}]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    written(tmp_path / "mt_bench", question=QUESTIONS)
    written(tmp_path / "alpaca", train_sample=ORDERS)
    return tmp_path


def test_prompts_of_a_corpus_are_chosen_by_a_seed_and_keep_their_order(data: Path) -> None:
    drawn = prompts_of(("Once", "@mt_bench:5", "@alpaca"))
    assert drawn == prompts_of(("Once", "@mt_bench:5:0", "@alpaca:2:7"))
    assert drawn[0] == "Once"
    numbers = [int(text.removesuffix("?")) for text in drawn[1:6]]
    assert numbers == sorted(set(numbers))
    assert drawn[6:] == ("Say it.\n\na plum", "Hum.")
    assert prompts_of(("@mt_bench:5:1",)) != drawn[1:6]
    assert len(prompts_of(("@mt_bench",))) == 4


@pytest.mark.parametrize(("prompt", "reason"), [
    ("@mt_bench:many", "expected @corpus, @corpus:count"), ("@mt_bench:0", "expected @corpus, @corpus:count"),
    ("@nowhere", "no such file"), ("@empty", "it has no prompt"), ("@other", "line 1: expected turns, an instruction")])
def test_prompts_that_are_not_there_are_refused_in_a_line(prompt: str, reason: str, data: Any) -> None:
    written(data / "empty", test=[])
    written(data / "other", test=[{"text": "a"}])
    with pytest.raises(PrunusError) as refused:
        prompts_of((prompt,))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
