"""The command line inside this process, with its streams caught at the file descriptors."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunus.cli import run


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
