"""Small tasks as folders of JSONL files with the hub's columns, and the harness's own way to them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FRUIT = ("plum", "pear", "cherry", "quince", "sloe", "apple", "medlar", "damson")


def written(folder: Path, **splits: Sequence[dict[str, Any]]) -> Path:
    """A folder with a file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def rows_of(task: str, count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Examples drawn by a seed."""
    rng = random.Random(f"{task} {seed}")

    def words(most: int = 4) -> str:
        return " ".join(rng.choice(FRUIT) for _ in range(rng.randint(1, most)))

    return [_ROWS[task](rng, words, place) for place in range(count)]


_ROWS: dict[str, Any] = {
    "piqa": lambda rng, words, place: {"goal": words(), "sol1": words(), "sol2": words(), "label": rng.randint(0, 1)},
    "arc_easy": lambda rng, words, place: {
        "id": f"q{place}", "question": words(), "answerKey": rng.choice("ABC"),
        "choices": {"text": [words(2) + str(way) for way in range(3)], "label": ["A", "B", "C"]}},
    "winogrande": lambda rng, words, place: {"sentence": f"{words(2)} _ {words(2)}", "option1": words(1), "option2": words(1) + "s",
                                             "answer": rng.choice("12")},
    "lambada_openai": lambda rng, words, place: {"text": f"{words()} {words(1)}"},
    "boolq": lambda rng, words, place: {"passage": words(3), "question": words(1), "label": rng.randint(0, 1), "idx": place},
    "gsm8k": lambda rng, words, place: {"question": words(2), "answer": f"{words(1)} #### {rng.randint(1, 9)}"},
    "humaneval": lambda rng, words, place: {
        "task_id": f"HumanEval/{place}", "prompt": f"def f{place}(x):\n", "entry_point": f"f{place}", "canonical_solution": "",
        "test": "def check(f):\n    assert f(3) == 3\n"},
}
