"""What a folder says of how its model was made, and of what it has seen; a folder that says odd things is no obstacle."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunus.calibration.corpus import QUESTIONS, Text
from prunus.comparing.made import made_of, seen_of
from prunus.grams import Looked

PLUMS = " ".join(f"plum{place}" for place in range(60))


def folder(path: Path, recipe: str = "", report: Any = None) -> str:
    path.mkdir(exist_ok=True)
    (path / "recipe.toml").write_text(recipe, encoding="utf-8")
    if report is not None:
        (path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return str(path)


def report_texts() -> tuple[list[Text], Looked]:
    return [Text("plums", "test", (PLUMS,), "documents joined by '\\n\\n'")], Looked()


def test_seconds_tokens_and_joules_are_those_of_all_stages(tmp_path: Path) -> None:
    site = {"site": "m.0.x", "asked": 0.5, "reached": 0.5, "error": 0.1, "seconds": 1.0}
    report = {"environment": {"model": "a b", "dtype": "float32"}, "sites": [site, {"site": "of another version"}],
              "cost": {"seconds": {"pruning": 5.0, "solving": 3.0, "dense": 1.5}, "tokens": {"pruning": 100.0}, "host_bytes": 7,
                       "device_bytes": 9, "questions": 4, "looks": 2.5, "joules": {"processors": 2.0, "memory": 1.0}}}
    made = made_of(folder(tmp_path / "one", report=report))
    assert made is not None
    assert (made.seconds, made.tokens, made.host_bytes, made.joules) == (6.5, 100.0, 7, 3.0)  # solving is a part of pruning
    assert made.stages == {"pruning": 5.0, "dense": 1.5}
    assert (made.device_bytes, made.questions, made.looks) == (9, 4, 2.5)
    assert [record.site for record in made.sites] == ["m.0.x"]
    assert made.command == f"prunus prune 'a b' --recipe {tmp_path}/one/recipe.toml --dtype float32 --out {tmp_path}/one-again"


def test_what_an_older_report_does_not_say_is_not_known(tmp_path: Path) -> None:
    made = made_of(folder(tmp_path / "one", report={"environment": {"model": "m"}}))
    assert made is not None
    assert (made.seconds, made.tokens, made.host_bytes, made.joules, made.sites) == (None, None, None, None, ())


@pytest.mark.parametrize("report", [None, [], 7, {"no": "environment"}])
def test_a_folder_without_a_report_says_nothing(tmp_path: Path, report: Any) -> None:
    assert made_of(folder(tmp_path / "one", report=report)) is None


def test_calibration_and_search_text_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "seen.txt").write_text(PLUMS)
    (tmp_path / "other.txt").write_text(PLUMS.replace("plum", "pear"))
    recipe = (f'[calibration]\ncorpus = "{tmp_path}/other.txt"\n[[stage]]\n[stage.search]\n'
              f'[stage.search.text]\ncorpus = "{tmp_path}/seen.txt"\n')
    found, remarks = seen_of(folder(tmp_path / "one", recipe), *report_texts())
    assert remarks == ()
    assert [(item.before.split(" ")[0], item.share) for item in found] == [("calibration", 0.0), ("search", 1.0)]


def test_questions_that_a_search_looked_at_are_found_among_those_that_are_reported(tmp_path: Path) -> None:
    rows = [{"question": f"{PLUMS[:90]} {place}?", "choices": ["pear", "quince"], "answer": place % 2} for place in range(4)]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = f'[[stage]]\n[stage.search]\nobjective = "accuracy"\n[stage.search.text]\ncorpus = "{tmp_path}/seen.jsonl"\n'
    asked = Text("fruit", "test", tuple(f"{row['question']} {row['choices'][row['answer']]}" for row in rows), QUESTIONS)
    found, remarks = seen_of(folder(tmp_path / "one", '[calibration]\ncorpus = "self"\n' + recipe), [asked], Looked())
    assert remarks == ()
    assert [(item.text, item.share, item.runs > 0) for item in found] == [("report questions (fruit test)", 1.0, True)]


def test_a_calibration_text_that_was_not_read_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "seen.txt").write_text(PLUMS)
    recipe = f'[calibration]\ncorpus = "{tmp_path}/seen.txt"\n'
    for tokens, count in (({"pruning": 0.0, "dense": 5.0}, 0), ({"pruning": 8.0}, 1), (None, 1)):
        found, _ = seen_of(folder(tmp_path / "one", recipe, {"cost": {"tokens": tokens}}), *report_texts())
        assert len(found) == count


@pytest.mark.parametrize(("recipe", "remark"), [
    ('[calibration]\ncorpus = "/none.txt"\n', "calibration text (/none.txt train) cannot be read here"),
    ("[calibration]\nplums = 3\n", "calibration text cannot be read here"),
    ("calibration = 3\nstage = 4\n", "calibration text cannot be read here"),
])
def test_what_cannot_be_read_is_a_remark(tmp_path: Path, recipe: str, remark: str) -> None:
    found, (said,) = seen_of(folder(tmp_path / "one", recipe, []), *report_texts())
    assert found == ()
    assert remark in said


def test_a_recipe_that_is_none_and_text_of_the_model_s_own_say_nothing(tmp_path: Path) -> None:
    assert seen_of(folder(tmp_path / "one", "[[["), *report_texts()) == ((), ())
    assert seen_of(folder(tmp_path / "one", '[calibration]\ncorpus = "self"\n'), *report_texts()) == ((), ())
    assert seen_of("someone/model", *report_texts()) == ((), ())
