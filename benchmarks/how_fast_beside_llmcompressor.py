"""How fast beside llm-compressor? SparseGPT at 70 % on SmolLM2, the same 16 x 512 C4 tokens, whole processes in turn.

The peer gets an environment of its own in .venv-peers, built from PyPI. Both load the same checkpoint, prune and save.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import ROOT, SMOLLM2, arguments, table, write

PEER, PEER_VERSION = "llmcompressor", "0.14.0.1"
VENV = ROOT / ".venv-peers"
SAMPLES, LENGTH, SPARSITY = 16, 512, 0.7


def main() -> None:
    options = arguments(__doc__ or "", runs={"type": int, "default": 3})
    if options.tiny:
        print("skipped: the peer's environment is gigabytes; make bench-peers builds it")
        return
    _environment()
    rows: list[dict[str, Any]] = []
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, tokens = _inputs(Path(folder), dtype)
            for run in range(options.runs):
                for name, command in _commands(Path(folder), checkpoint, tokens, run):
                    rows.append({"name": name, "dtype": dtype, "seconds": _timed(command), "command": " ".join(command[1:])})
                    print(name, dtype, round(rows[-1]["seconds"], 1), flush=True)
    shown = table(["checkpoint", f"{PEER} {PEER_VERSION}, s", "Prunus, s", "ratio"],
                  [[dtype, f"{theirs:.1f}", f"{ours:.1f}", f"{ours / theirs:.3f}"]
                   for dtype in ("float32", "bfloat16")
                   for theirs, ours in [[statistics.median(row["seconds"] for row in rows if (row["name"], row["dtype"]) == (name, dtype))
                                         for name in (PEER, "Prunus")]]])
    print(shown)
    write("how_fast_beside_llmcompressor", f"SparseGPT, 70 %, C4, {SAMPLES} sequences of {LENGTH} tokens; median of "
          f"{options.runs} whole processes each, in turn: start, load, calibrate, prune, save",
          rows, {"how_fast_beside_llmcompressor": shown})


def _environment() -> None:
    """The peer's own environment, made once."""
    if not (VENV / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, f"{PEER}=={PEER_VERSION}", "torch==2.13.0"], check=True)
        (VENV / "ready").touch()


def _inputs(folder: Path, dtype: str) -> tuple[Path, Path]:
    """The same plain checkpoint for both, and the token ids that Prunus will choose."""
    from prunus import Calibration, load

    loaded = load(SMOLLM2, dtype=dtype)
    checkpoint, tokens = folder / "dense", folder / "tokens.json"
    loaded.model.save_pretrained(checkpoint)  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(checkpoint)
    chosen = Calibration("c4", samples=SAMPLES, length=LENGTH).tokens(loaded.tokenizer, loaded.model, 0)
    tokens.write_text(json.dumps(chosen.tolist()))
    return checkpoint, tokens


def _commands(folder: Path, checkpoint: Path, tokens: Path, run: int) -> list[tuple[str, list[str]]]:
    ours = [sys.executable, "-m", "prunus", "prune", str(checkpoint), "--solver", "sparsegpt", "--sparsity", str(SPARSITY),
            "--calibration", "c4", "--samples", str(SAMPLES), "--length", str(LENGTH), "--evaluate", "none",
            "--out", str(folder / f"ours-{run}"), "--quiet"]
    theirs = [str(VENV / "bin" / "python"), str(ROOT / "benchmarks" / "_llmcompressor.py"), str(checkpoint), str(tokens),
              str(folder / f"theirs-{run}"), str(SPARSITY)]
    return [("Prunus", ours), (PEER, theirs)]


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
