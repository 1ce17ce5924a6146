"""The work of a cell: load, prune, measure; in this process, or in one of its own, whose death costs only its cell."""

import faulthandler
import gc
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..calibration.placement import Placement
from ..calibration.sample import how_read
from ..comparing.looking import hash_of, opened
from ..comparing.measuring import Piece
from ..environment import environment, forget_peak, release_memory
from ..errors import PrunusError
from ..evaluation import Context, Measurement
from ..export.huggingface import save
from ..grams import Overlap
from ..guards import flags, remarks
from ..journal import Journal
from ..pipeline import Progress, prune
from ..recipe import Recipe
from ..result import Pruned
from ..traits import model_bytes, parameters_of
from .cells import Look, measurements, plain_measurements
from .plan import Subject

__all__ = ["Apart", "Failed", "Here", "Job", "Watch", "Worker", "attempted"]

Watch = Callable[[Progress], None]
_EVERY = 0.1  # seconds between two words of a worker
_PATIENCE = 10.0  # seconds that a process has to end in order


@dataclass(frozen=True)
class Failed:
    """What went wrong."""

    line: str
    trace: str = ""  # where, if it was nothing that a person can cure
    ours: bool = False  # whether it is an error with a message of its own


@dataclass(frozen=True)
class Job:
    """A cell as the worker needs it."""

    model: Subject
    recipe: Recipe | None  # None: the dense model is measured
    pieces: tuple[Piece, ...]
    device: str
    trust: bool
    unfinished: Path  # where finished blocks wait
    kept: Path | None = None  # where the pruned model is saved
    overlaps: tuple[Overlap, ...] = ()  # of the texts that the recipe reads and those of the report
    dense: Mapping[str, Any] | None = None  # what was found of the dense model


@runtime_checkable
class Worker(Protocol):
    """What carries out cells."""

    def look(self, model: Subject, device: str, trust: bool) -> Look:
        """A model before anything is measured. Raises PrunusError."""
        ...

    def work(self, job: Job, watch: Watch) -> dict[str, Any] | Failed:
        """What a cell finds and what it took, or how it failed."""
        ...


class Here:
    """Works in this process; remembers what the dense model predicted, for all cells of one model that follow each other."""

    def __init__(self) -> None:
        self._of: Subject | None = None
        self._dense: dict[str, Any] = {}

    def look(self, model: Subject, device: str, trust: bool) -> Look:
        """A model before anything is measured. Raises LoadError and RecipeError."""
        loaded: Any = opened(model.source, model.dtype, "cpu", trust, "study")
        return Look(hash_of(loaded), how_read(loaded.model, loaded.tokenizer, loaded.stored))

    def work(self, job: Job, watch: Watch) -> dict[str, Any]:
        """What a cell finds, and what it took. Raises PrunusError."""
        gc.collect()  # modules refer to each other in circles: what the last cell's model took would count for this one
        start = time.perf_counter()
        loaded: Any = opened(job.model.source, job.model.dtype, "cpu", job.trust, "study")
        placement = Placement(job.device)
        if job.device != "cpu" and placement.fits(loaded.model):
            loaded.model.to(job.device)
        if self._of != job.model:
            self._of, self._dense = job.model, {}
        measured, seconds = self._measured(loaded, job, watch, before=job.recipe is not None)
        cost: dict[str, Any] = {"seconds": {}, "tokens": {}, "joules": {}, "host_bytes": None}
        if job.recipe is None:
            found = _of_dense(loaded, measured)
        else:
            release_memory()
            known, began = forget_peak(), time.process_time()
            pruned = prune(loaded.model, job.recipe, tokenizer=loaded.tokenizer, placement=placement, watch=watch,
                           resume=job.unfinished, source=job.model.source)
            processor = time.process_time() - began
            measured, seconds = self._measured(replace(loaded, model=pruned.model), job, watch, before=False)
            found, cost = _of_pruned(pruned, measured), {**asdict(pruned.report.cost), "processor": processor}
            if not known:
                cost["host_bytes"] = None  # the peak would be that of whatever this process did before
            if job.kept is not None:
                _keep(pruned, job, measured)
            Journal(job.unfinished).discard()
        environ = environment(loaded.model, job.device, job.model.source)
        return {"found": found, "took": {"cost": cost, "measuring": seconds, "whole": time.perf_counter() - start,
                                         "environment": {key: environ[key] for key in ("dtype", "device", "machine", "python")}}}

    def _measured(self, loaded: Any, job: Job, watch: Watch, before: bool) -> tuple[tuple[Measurement, ...], float]:
        """All numbers; `before` a model is pruned only the predictions that are not known yet, which others are compared with."""
        start = time.perf_counter()
        found: list[Measurement] = []
        for piece in job.pieces:
            known = self._dense.get(piece.name)
            if before and (known is not None or not piece.beside_dense):
                continue
            dense: dict[str, Any] = known if known is not None and job.recipe else {}

            def tell(phase: str, done: int | float, total: int | float, name: str = piece.name) -> None:
                watch(Progress(name, done, total))

            tell("", 0, 1)
            found += piece.metric.measure(loaded.model, Context(loaded.tokenizer, job.device, tell, dense))
            if before or job.recipe is None:
                self._dense[piece.name] = dense
        return tuple(found), time.perf_counter() - start


def _of_dense(loaded: Any, measured: tuple[Measurement, ...]) -> dict[str, Any]:
    from ..achieved import counted, sparsity_of
    from ..anatomy import describe

    anatomy = describe(loaded.model)
    sparsity = sparsity_of(counted(loaded.model, anatomy, anatomy))
    return {"sparsity": sparsity, "parameters": parameters_of(loaded.model), "bytes": model_bytes(loaded.model),
            "measured": plain_measurements(measured), "sites": [], "notes": []}


def _of_pruned(pruned: Pruned, measured: tuple[Measurement, ...]) -> dict[str, Any]:
    report = pruned.report
    return {"sparsity": report.sparsity, "parameters": report.parameters[1], "bytes": report.bytes[1],
            "measured": plain_measurements(measured), "sites": [asdict(site) for site in report.sites],
            "matrices": [asdict(matrix) for matrix in report.matrices], "allocation": [dict(shares) for shares in report.allocation],
            "notes": list(report.notes)}


def _keep(pruned: Pruned, job: Job, after: tuple[Measurement, ...]) -> None:
    """Save the model with a report that has the study's numbers in it. Raises ExportError."""
    assert job.kept is not None
    before = measurements(job.dense) if job.dense else ()
    report = pruned.report
    if before:
        notes = (*report.notes, *remarks(before, after, job.overlaps))
        report = replace(report, before=before, after=after, notes=notes, flags=flags(before, after, job.overlaps), overlaps=job.overlaps)
    job.kept.parent.mkdir(parents=True, exist_ok=True)
    save(replace(pruned, report=report), job.kept, overwrite=True)


def attempted(what: Callable[[], Any]) -> Any:
    """What it gives, or how it failed: other cells do not depend on it."""
    try:
        return what()
    except PrunusError as error:
        return Failed(str(error), ours=True)
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        return Failed(f"{type(error).__name__}: {line}", traceback.format_exc())


class Apart:
    """Works in a process of its own, which is begun when it is needed, and again when it has died."""

    def __init__(self) -> None:
        self._process: Any = None
        self._talk: Connection | None = None
        self._busy = False
        file, name = tempfile.mkstemp(prefix="prunus-study-", suffix=".log")
        os.close(file)
        self._log = Path(name)

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._log.unlink(missing_ok=True)

    def look(self, model: Subject, device: str, trust: bool) -> Look:
        """As `Here.look`. Raises PrunusError."""
        found = self._asked("look", (model, device, trust), lambda progress: None)
        if isinstance(found, Failed):
            raise PrunusError(found.line if found.ours else f"model '{model.source}': {found.line}")
        look: Look = found
        return look

    def work(self, job: Job, watch: Watch) -> dict[str, Any] | Failed:
        """As `Here.work`; how it failed where it did."""
        found: dict[str, Any] | Failed = self._asked("work", job, watch)
        return found

    def _asked(self, what: str, about: Any, watch: Watch) -> Any:
        talk, self._busy = self._begun(), True
        try:
            talk.send((what, about))
            while isinstance(said := talk.recv(), Progress):
                watch(said)
        except (EOFError, ConnectionError):
            return self._died()
        self._busy = False
        return said

    def _begun(self) -> Connection:
        if self._talk is None:
            context = multiprocessing.get_context("spawn")
            self._talk, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, str(self._log)), daemon=True)
            self._process.start()
            theirs.close()
        return self._talk

    def _died(self) -> Failed:
        """Why, as far as it shows."""
        self._process.join()
        code = self._process.exitcode
        self.close()
        log = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        said = next((line.strip() for line in log.splitlines() if line.startswith("Fatal Python error")), "")
        if code == -signal.SIGKILL:
            said = "it was killed (SIGKILL), as systems do when memory runs out"
        elif code is not None and code < 0 and not said:
            said = f"signal {signal.Signals(-code).name}"
        return Failed(f"the process of the cell has died: {said or f'it ended with {code}'}", log[-4000:])

    def close(self) -> None:
        """End the process: at once where it works on something, which stays unfinished."""
        if self._talk is not None:
            self._talk.close()  # one that waits for work ends by itself
            if self._busy:
                self._process.terminate()
            self._process.join(_PATIENCE)
            self._process.kill()
            self._process.join()
        self._talk = self._process = None
        self._busy = False


def _serve(talk: Connection, log: str) -> None:
    """The other process: what libraries print goes to a file, and interruptions are for the one that asks."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    faulthandler.enable(sys.__stderr__ or 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order, so that nothing shared is left behind
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    here, last = Here(), [-math.inf]

    def tell(progress: Progress) -> None:
        if progress.done >= progress.total or time.perf_counter() - last[0] > _EVERY:
            last[0] = time.perf_counter()
            talk.send(progress)

    while True:
        try:
            what, about = talk.recv()
        except (EOFError, ConnectionError):
            return
        talk.send(attempted(partial(here.look, *about) if what == "look" else partial(here.work, about, tell)))


def _end_with_the_other() -> None:
    """Where the process that asks was killed, nothing reads what this one finds."""
    asking = multiprocessing.parent_process()
    assert asking is not None
    asking.join()
    os.kill(os.getpid(), signal.SIGTERM)
