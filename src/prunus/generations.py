"""The same prompts answered before and after."""

import os
import random
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from .calibration.corpus import rows_of
from .errors import CorpusError, RecipeError
from .traits import predicts_next

__all__ = ["PROMPTS", "generate", "prompts_of"]

PROMPTS = (
    "The capital of France is",
    "To make a good cup of tea, first",
    "In mathematics, a prime number is",
)
_MARK = "@"  # a prompt that begins with it names a corpus of prompts


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


def prompts_of(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """The same prompts, with those of a corpus in the place of `@corpus`, `@corpus:count` or `@corpus:count:seed` (4 prompts, seed 0).

    A corpus is a folder of PRUNUS_DATA or a JSONL file, whose rows have "turns" (MT-Bench: the first one is taken), "instruction"
    and perhaps "input" (Alpaca), "question" (GSM8K) or "prompt". Raises RecipeError and CorpusError.
    """
    return tuple(text for prompt in prompts for text in (_drawn(prompt) if prompt.startswith(_MARK) else (prompt,)))


def _drawn(words: str) -> list[str]:
    """Prompts of a corpus, chosen by a seed, in the order in which they stand there."""
    corpus, *numbers = words.removeprefix(_MARK).split(":")
    if len(numbers) > 2 or not all(number.isdigit() for number in numbers) or numbers[:1] == ["0"]:
        raise RecipeError(f"prompts: '{words}': expected @corpus, @corpus:count or @corpus:count:seed, such as @mt_bench:4:0.")
    count, seed = (int(given) if given else usual for given, usual in zip_longest(numbers, (4, 0)))
    file = _file(corpus)
    rows = rows_of(file)
    if not rows:
        raise CorpusError(f"corpus file {file}: it has no prompt.")
    places = sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    return [_prompt(row, f"corpus file {file}, line {number}") for number, row in (rows[place] for place in places)]


def _file(corpus: str) -> Path:
    """A file, or that of a folder in PRUNUS_DATA which is for tests, or else its first one. Raises CorpusError."""
    base = os.environ.get("PRUNUS_DATA")
    if Path(corpus).is_file():
        return Path(corpus)
    found = sorted((Path(base) / corpus).glob("*.jsonl*")) if base and corpus else []
    if not found:
        raise CorpusError(f"prompts: corpus '{corpus}': no such file, and no JSONL file in such a folder of PRUNUS_DATA "
                          f"({base or 'not set'}).")
    return min(found, key=lambda file: not file.name.startswith("test"))


def _prompt(row: dict[str, Any], where: str) -> str:
    turns = row.get("turns")
    if isinstance(turns, list) and turns and isinstance(turns[0], str):
        return turns[0]
    found = next((row[key] for key in ("instruction", "question", "prompt") if isinstance(row.get(key), str)), None)
    if found is None:
        raise CorpusError(f"{where}: expected turns, an instruction, a question or a prompt, found {', '.join(row) or 'nothing'}.")
    return f"{found}\n\n{row['input']}" if row.get("input") and isinstance(row["input"], str) else str(found)
