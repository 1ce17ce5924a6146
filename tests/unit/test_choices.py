"""Multiple-choice examples: read from the field's layouts, refused by file and line, encoded so that choices can be told apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunus.calibration.choices import Example, as_text, encoded, examples
from prunus.errors import CorpusError

from ..tiny import tiny_tokenizer

ROWS: list[dict[str, Any]] = [
    {"context": "The sky is", "choices": ["blue", "sour"], "answer": 0},
    {"query": "Grass is", "choices": ["loud", "green", "late"], "gold": 1},
    {"question": "Ice is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "B"},
    {"question_stem": "Two and two", "choices": {"text": ["five", "four"], "label": ["1", "2"]}, "label": "2"},
]


def written(folder: Path, rows: list[Any]) -> str:
    file = folder / "examples.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(file)


def test_the_field_s_layouts_are_read(tmp_path: Path) -> None:
    found = examples(written(tmp_path, ROWS))
    assert found == [Example("The sky is", ("blue", "sour"), 0), Example("Grass is", ("loud", "green", "late"), 1),
                     Example("Ice is", ("hot", "cold"), 1), Example("Two and two", ("five", "four"), 1)]
    assert as_text(found, "a/examples.jsonl", "train").documents[1] == "Grass is loud\nGrass is green\nGrass is late"


@pytest.mark.parametrize("row", [
    {"context": "a", "choices": ["b"], "answer": 0}, {"context": "a", "choices": ["b", "c"], "answer": 2},
    {"context": "a", "choices": ["b", " "], "answer": 0}, {"context": "a", "choices": "bc", "answer": 0},
    {"context": "a", "choices": ["b", "c"]}, {"choices": ["b", "c"], "answer": 0},
    {"context": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "C"},
], ids=["one choice", "answer too large", "empty choice", "no list", "no answer", "no context", "no such label"])
def test_a_bad_row_is_refused_by_file_and_line(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"examples\.jsonl, line 2: expected a context"):
        examples(written(tmp_path, [ROWS[0], row]))


def test_a_file_without_examples_and_a_name_without_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="it has no example"):
        examples(written(tmp_path, [])[:])
    with pytest.raises(CorpusError, match="no such file, and no such folder in PRUNUS_DATA"):
        examples("nowhere")


def test_rows_hold_the_context_and_a_choice_and_mark_the_choice(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    found = encoded(examples(written(tmp_path, ROWS)), tokenizer, 4, 64, seed=0, bos=False)
    assert (len(found), found.ways, found.tokens.shape[0]) == (4, 3, 12)
    order = [tokenizer.decode(found.tokens[3 * index][: int(found.chosen[3 * index].nonzero().max()) + 1]) for index in range(4)]
    grass = order.index("Grass is loud")
    marked = [tokenizer.decode(found.tokens[row][found.chosen[row]]) for row in range(3 * grass, 3 * grass + 3)]
    assert [choice.strip() for choice in marked] == ["loud", "green", "late"]
    assert int(found.answers[grass]) == 1
    assert [bool(found.chosen[3 * index + 2].any()) for index in range(4)] == [index == grass for index in range(4)]
    part = found.taking([grass])
    assert part.tokens.tolist() == found.tokens[3 * grass : 3 * grass + 3].tolist()
    assert part.answers.tolist() == [1]


def test_long_contexts_lose_their_beginning_not_the_choice(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    (row,) = [{"context": "a " * 50 + "end", "choices": ["yes", "no"], "answer": 1}]
    found = encoded(examples(written(tmp_path, [row])), tokenizer, 1, 12, seed=0, bos=False)
    assert found.tokens.shape == (2, 12)
    assert tokenizer.decode(found.tokens[0]).endswith("end yes")


def test_other_seeds_take_other_examples(tmp_path: Path) -> None:
    rows = [{"context": f"number {index}", "choices": ["a", "b"], "answer": 0} for index in range(20)]
    found = examples(written(tmp_path, rows))
    one, same, other = (encoded(found, tiny_tokenizer(), 5, 64, seed, bos=False).tokens.tolist() for seed in (0, 0, 1))
    assert one == same != other
