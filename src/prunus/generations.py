"""The same prompts answered before and after."""

from typing import Any

import torch

from .traits import predicts_next

__all__ = ["PROMPTS", "generate"]

PROMPTS = (
    "The capital of France is",
    "To make a good cup of tea, first",
    "In mathematics, a prime number is",
)


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompts: tuple[str, ...], tokens: int = 32) -> tuple[str, ...]:
    """Greedy continuations of at most `tokens` tokens; empty for models that do not generate."""
    if not predicts_next(model):
        return ()
    device = next(model.parameters()).device
    answers = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt").to(device)
        output = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
                                num_beams=1, max_new_tokens=tokens, temperature=None, top_p=None, top_k=None,
                                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return tuple(answers)
