"""The same prompts are answered greedily, so that only the model can make a difference."""

import pytest
import torch

from prunus.generations import generate

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
