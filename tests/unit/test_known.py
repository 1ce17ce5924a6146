"""What is measured of the dense model is held against what is known of it, of the same protocol only."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunus.errors import ComparisonError
from prunus.evaluation import Measurement
from prunus.known import Known, checked, read_known

PROTOCOL = "news test perplexity, text sha256 abc, 4 windows of 512, float32, tokenizer of 258 words 07fc71e9"
MEASURED = Measurement(math.exp(2), "perplexity", "lower", PROTOCOL, (1.0, 2.0, 2.0, 3.0), 1.0)


def test_the_difference_is_in_standard_errors_of_the_mean_loss() -> None:
    """Of 1, 2, 2, 3: the deviation is sqrt(2 / 3), the standard error half of that."""
    found, = checked([MEASURED], [Known(math.exp(1.5), PROTOCOL, "paper.json")])
    assert found.units == pytest.approx(0.5 / (math.sqrt(2 / 3) / 2))
    assert found.off
    assert str(found).startswith("Not as known: the dense model's news test perplexity is 7.3891, and 4.4817 in paper.json, which is +1.2 ")


def test_a_value_that_is_equal_but_for_rounding_is_as_known() -> None:
    found, = checked([MEASURED], [Known(7.39, PROTOCOL, "paper.json")])
    assert not found.off
    assert str(found).startswith("As known: ")
    assert checked([MEASURED], [Known(math.exp(2) * 1.011, PROTOCOL, "")])[0].off
    assert checked([replace(MEASURED, value=math.nan)], [Known(7.39, PROTOCOL, "")])[0].off
    assert checked([MEASURED], []) == ()


def test_a_value_of_another_protocol_is_refused_with_the_first_part_that_differs() -> None:
    known = Known(7.39, PROTOCOL.replace("4 windows of 512", "8 windows of 256").replace("float32", "bfloat16"), "paper.json")
    with pytest.raises(ComparisonError, match=r"paper\.json has another protocol: '8 windows of 256', and here it is '4 windows of 512'"):
        checked([MEASURED], [known])
    with pytest.raises(ComparisonError, match="c4 test perplexity, and here is measured news test perplexity"):
        checked([MEASURED], [Known(7.39, "c4 test perplexity, text sha256 abc", "paper.json")])
    with pytest.raises(ComparisonError, match="several of one protocol"):
        checked([MEASURED], [Known(7.39, PROTOCOL, "a"), Known(8.0, PROTOCOL, "a")])


def test_what_is_known_of_other_things_is_left_alone_where_something_is_known_of_these() -> None:
    known = [Known(7.39, PROTOCOL, "a"), Known(9.0, "c4 test perplexity, text sha256 abc", "a")]
    assert len(checked([MEASURED], known)) == 1


def write(file: Path, data: Any) -> Path:
    file.write_text(json.dumps(data))
    return file


def test_known_values_are_read_from_reports_and_from_small_files(tmp_path: Path) -> None:
    row = {"value": 7.39, "protocol": PROTOCOL, "parts": [1.0]}
    report = {"before": [row], "after": [{**row, "value": 9.0}], "environment": {"model": "tiny"}}
    assert read_known(write(tmp_path / "report.json", report)) == (Known(7.39, PROTOCOL, "report.json of tiny"),)
    assert read_known(write(tmp_path / "known.json", [row])) == (Known(7.39, PROTOCOL, "known.json"),)
    assert read_known(write(tmp_path / "one.json", {"value": 7, "protocol": PROTOCOL})) == (Known(7.0, PROTOCOL, "one.json"),)


@pytest.mark.parametrize(("data", "words"), [([], "there is none"), ([{"value": 7.0}], "entry 1 has no finite"), ([3], "entry 1"),
                                             ({"value": "inf", "protocol": "a"}, "entry 1")], ids=str)
def test_files_without_values_are_refused(tmp_path: Path, data: Any, words: str) -> None:
    with pytest.raises(ComparisonError, match=words):
        read_known(write(tmp_path / "known.json", data))
    with pytest.raises(ComparisonError, match="cannot be read as JSON"):
        read_known(tmp_path / "none.json")


def test_how_the_known_models_weights_were_stored_is_no_part_of_how_it_was_measured() -> None:
    found, = checked([replace(MEASURED, protocol=PROTOCOL.replace("float32", "float32, weights stored as GGUF Q4_1"))],
                     [Known(math.exp(2), PROTOCOL, "paper.json")])
    assert not found.off
