"""No benchmark rots: each runs to its end on a tiny model, and writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if not file.name.startswith("_"))


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_benchmark_runs_on_a_tiny_model_and_leaves_no_result(question: str) -> None:
    before = set((ROOT / "benchmarks").rglob("*.json"))
    ran = subprocess.run([sys.executable, f"benchmarks/{question}.py", "--tiny"], cwd=ROOT, capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert set((ROOT / "benchmarks").rglob("*.json")) == before
