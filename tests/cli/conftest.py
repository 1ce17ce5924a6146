"""The command line inside this process, with its streams caught at the file descriptors."""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunus.cli import run
from prunus.loading import load

from ..tiny import tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def prunus(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`prunus("prune", model, "--out", folder)`."""
    def call(*words: Any) -> Ran:
        monkeypatch.setattr(sys, "argv", ["prunus", *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            run()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capfd.readouterr())
    return call


@pytest.fixture
def quick(checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path) -> list[Any]:
    """The words of a prune that takes a fraction of a second; later flags win over these."""
    return ["prune", checkpoint(), "--out", tmp_path / "out", "--calibration", text_file, "--samples", 4, "--length", 32,
            "--evaluate", "none"]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """Sentences of plums, which are 1, and of pears, which are 0."""
    rng = random.Random(0)
    rows = []
    for _ in range(80):
        label = rng.randrange(2)
        words = [rng.choice(["a", "the", "green", "ripe", "old"]), "plum" if label else "pear", rng.choice(["falls", "grows", "is here"])]
        rows.append({"sentence": " ".join(words), "label": label})
    file = tmp_path / "fruit.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def saved(family: str, folder: Path, **changes: Any) -> Path:
    model = tiny_model(family, **changes)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return saved("bert", tmp_path / "bert", num_hidden_layers=3)


@pytest.fixture
def headed(encoder: Path, tmp_path: Path) -> Path:
    """With a head for the labels of `task_file`."""
    model, tokenizer = load(encoder, labels=("0", "1"))
    model.save_pretrained(tmp_path / "headed")
    tokenizer.save_pretrained(tmp_path / "headed")
    return tmp_path / "headed"


def task(file: Path) -> str:
    return f"{file},length=24"
