"""prunus compare: its flags, what it prints, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..contenders import three
from .conftest import Ran

Prunus = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def words(tmp_path: Path) -> list[Any]:
    return ["compare", *three(tmp_path), "--out", tmp_path / "out", "--length", 32, "--tokens", 512, "--rounds", 0, "--answer", 4]


def test_a_report_is_written_and_its_table_printed(prunus: Prunus, words: list[Any], tmp_path: Path) -> None:
    ran = prunus(*words)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["dense", "(dense)", "half", "wreck"] or "reward-hacked" in lines[0]
    assert any(line.startswith("builtin test perplexity") for line in lines)
    assert any(line.startswith("half: 50.0% of the block weights are zero or gone; 100.0% of the parameters are left") for line in lines)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "MODEL_CARD-half.md", "MODEL_CARD-wreck.md", "measured", "report.html", "report.json", "report.md"]
    again = prunus(*words, "--json")
    report = json.loads(again.out)
    assert [model["name"] for model in report["models"]] == ["dense", "half", "wreck"]
    assert again.err == ""
    assert prunus(*words, "--quiet").out == ""


def test_the_command_in_the_report_does_it_again(prunus: Prunus, words: list[Any], tmp_path: Path) -> None:
    import shlex

    report = json.loads(prunus(*words, "--prompt", "A plum, a 'pear'", "--json").out)
    _, *command = shlex.split(report["command"])
    again = json.loads(prunus(*command, "--json").out)
    assert again["command"] == report["command"]
    assert again["rows"] == report["rows"]
    assert again["prompts"] == ["A plum, a 'pear'"]


def test_none_leaves_texts_or_prompts_out(prunus: Prunus, words: list[Any]) -> None:
    report = json.loads(prunus(*words, "--prompt", "none", "--json").out)
    assert report["prompts"] == []
    assert "--prompt none" in report["command"]
    assert "neither corpora nor tasks" in prunus(*words, "--corpora", "none").err


@pytest.mark.parametrize(("flags", "message"), [
    (["--corpora", "builtim"], "corpus 'builtim' is unknown: "),
    (["--tasks", "piqq"], "task 'piqq' is unknown. Did you mean 'piqa'?"),
    (["--rounds", -1], "rounds = -1"),
    (["--dtype", "float8"], "dtype 'float8' is unknown"),
    (["--known", "nothing.json"], "known values nothing.json: cannot be read as JSON"),
])
def test_bad_words_are_told_in_one_line(prunus: Prunus, words: list[Any], flags: list[Any], message: str) -> None:
    ran = prunus(*words, *flags, "--quiet")
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_an_interruption_says_how_to_go_on(prunus: Prunus, words: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunus.comparing.measuring.generate", interrupted)
    ran = prunus(*words)
    assert ran.code == 130
    assert "what was measured is kept" in " ".join(ran.err.split())
    assert len(list((tmp_path / "out" / "measured").glob("text-*.json"))) == 1
