"""A study of tiny models that takes seconds, and a worker in this process."""

import random
from pathlib import Path
from typing import Any

from prunus.studying.cells import Look
from prunus.studying.plan import Study, Subject, study_of
from prunus.studying.run import Told, carry_out, planned
from prunus.studying.work import Failed, Here, Job, Watch, attempted

from .contenders import saved
from .tiny import tiny_model

THREE = ("magnitude", "wanda", "sparsegpt")


def text(folder: Path, seed: int) -> str:
    """A file with lines that no other seed has."""
    file = folder / f"text-{seed}.txt"
    if not file.exists():
        drawn = random.Random(seed)
        words = ["".join(drawn.choices("abcdefghijklmnop", k=5)) for _ in range(1500)]
        file.write_text("\n".join(" ".join(words[start : start + 10]) for start in range(0, 1500, 10)), encoding="utf-8")
    return str(file)


def calibration(folder: Path, samples: int = 4) -> dict[str, Any]:
    """Few sequences of a small text."""
    return {"corpus": text(folder, 1), "samples": samples, "length": 32}


def metrics(folder: Path, tokens: int = 512) -> dict[str, Any]:
    """Few windows of another one."""
    return {"corpora": [text(folder, 2)], "length": 32, "tokens": tokens}


def table(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a file of a study would say."""
    if not (folder / "tiny").exists():
        saved(folder / "tiny", tiny_model())
    return {"models": [{"source": str(folder / "tiny")}], "seeds": [0, 1], "metrics": metrics(folder),
            "recipes": [{"grid": {"solver": list(THREE)}, "calibration": calibration(folder)}], **changes}


def study(folder: Path, **changes: Any) -> Study:
    """The same as a study."""
    return study_of(table(folder, **changes))


class InProcess:
    """Fails as a worker in another process does, but for deaths."""

    def __init__(self) -> None:
        self.here = Here()
        self.jobs: list[Job] = []  # that were begun

    def look(self, model: Subject, device: str, trust: bool) -> Look:
        return self.here.look(model, device, trust)

    def work(self, job: Job, watch: Watch) -> dict[str, Any] | Failed:
        self.jobs.append(job)
        found: dict[str, Any] | Failed = attempted(lambda: self.here.work(job, watch))
        return found


def ran(of: Study, out: Path, worker: InProcess | None = None, tell: Told = Told(), **how: Any) -> Any:
    """The state after all cells were tried."""
    return carry_out(planned(of, out, **how), worker or InProcess(), tell)
