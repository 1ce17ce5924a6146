"""Every model measured in the same way, one in memory at a time but for speed; what is known already is not measured again."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from ..calibration.corpus import Text
from ..calibration.reported import beginning_of
from ..environment import machine, release_memory
from ..evaluation import Context, Measurement
from ..evaluation.fidelity import Fidelity
from ..evaluation.tasks import Tasks
from ..generations import generate, prompts_of
from ..speed import Timing, in_pytorch, memory_in_pytorch
from .kept import Kept, measurement_of
from .looking import opened
from .values import Asked, Contender

__all__ = ["Measuring", "Piece", "pieces_of"]

Watch = Callable[[str, int | float, int | float], None]


@dataclass(frozen=True)
class Piece:
    """One look at a model: at a text, or at a task."""

    name: str
    metric: Any  # Fidelity or Tasks
    identity: Mapping[str, Any]  # settings, what is read, and versions
    texts: tuple[Text, ...]  # that are reported on: as much of a text as is measured, or questions

    @property
    def beside_dense(self) -> bool:
        """Whether the dense model's predictions are needed."""
        return isinstance(self.metric, Fidelity)


def pieces_of(asked: Asked) -> tuple[Piece, ...]:
    """Everything that is measured, found before a model is loaded. Raises CorpusError, RecipeError and MissingExtra."""
    found = []
    for corpus in asked.corpora:
        metric = Fidelity((corpus,), asked.split, asked.length, asked.tokens)
        text, = metric.texts()
        identity = {"part": "text", "metric": asdict(metric), "text": text.digest, "joined": text.joined, "prunus": version("prunus")}
        found.append(Piece(f"text {corpus}", metric, identity, (beginning_of(text, asked.tokens),)))
    for name in asked.tasks:
        tasks = Tasks((name,), asked.limit, asked.shots)
        opened = tasks.opened()
        documents = [_digest(task) for one in opened for task in one.tasks]
        identity = {"part": "task", "metric": asdict(tasks), "documents": documents, "prunus": version("prunus"),
                    "lm_eval": version("lm_eval") if find_spec("lm_eval") else ""}
        found.append(Piece(f"task {name}", tasks, identity, tuple(map(tasks.text_of, opened))))
    return tuple(found)


def _digest(task: Any) -> str:
    """Of a task's examples, those that are shown before a question too, and of what it does with them."""
    rows = [*task.eval_docs, *(task.training_docs() if task.config.num_fewshot and task.has_training_docs() else ())]
    said = json.dumps([rows, task.dump_config()], sort_keys=True, default=_named)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _named(value: Any) -> str:
    """Functions by their names, as where they lie in memory changes."""
    return str(getattr(value, "__qualname__", type(value).__name__))


@dataclass(frozen=True)
class Measuring:
    """A comparison at work."""

    asked: Asked
    pieces: tuple[Piece, ...]
    kept: Kept
    trust: bool
    watch: Watch

    def all(self, models: Sequence[Contender], dtype: str) -> tuple[Contender, ...]:
        """The models with everything that was asked."""
        dense: dict[str, Any] = {}  # the dense model's predictions, while others are compared with them
        prompts = prompts_of(self.asked.prompts)
        found = [self._one(model, models, dtype, dense, prompts) for model in models]
        return tuple(self._timed(found, dtype) if self.asked.rounds else found)

    def _one(self, model: Contender, models: Sequence[Contender], dtype: str, dense: dict[str, Any],
             prompts: tuple[str, ...]) -> Contender:
        loaded: list[Any] = []  # once it is needed

        def at_hand() -> Any:
            if not loaded:
                loaded.append(opened(model.source, dtype, self.asked.device, self.trust))
            return loaded[0]

        if model is models[0]:
            self._predictions(models, dtype, dense, at_hand)
        measured: list[Measurement] = []
        seconds: dict[str, float] = {}
        for piece in self.pieces:
            result = self.kept.asked(_identity(piece, model, models[0], self.asked.device), partial(self._measure, piece, at_hand, dense))
            measured += map(measurement_of, result["measured"])
            seconds[piece.name] = result["seconds"]
        identity = {"part": "answers", "weights": model.weights, "read": model.read, "prompts": prompts, "tokens": self.asked.answer,
                    "device": self.asked.device, "prunus": version("prunus")}
        answered = self.kept.asked(identity, lambda: self._answer(at_hand(), prompts))
        loaded.clear()
        release_memory()
        return replace(model, measured=tuple(measured), answers=tuple(answered["answers"]),
                       seconds={**seconds, "answers": answered["seconds"]})

    def _predictions(self, models: Sequence[Contender], dtype: str, dense: dict[str, Any], at_hand: Callable[[], Any]) -> None:
        """The dense model reads those texts again that it has read in an earlier run and another model has not yet."""
        for piece in self.pieces:
            known = [self.kept.has(_identity(piece, model, models[0], self.asked.device)) for model in models]
            if piece.beside_dense and known[0] and not all(known):
                self._measure(piece, at_hand, dense)

    def _measure(self, piece: Piece, at_hand: Callable[[], Any], dense: dict[str, Any]) -> dict[str, Any]:
        loaded = at_hand()
        self.watch(f"{piece.name}, {loaded.source}", 0, 1)
        start = time.perf_counter()
        context = Context(loaded.tokenizer, self.asked.device, self._within(piece.name, loaded.source), dense, loaded.stored)
        found = piece.metric.measure(loaded.model, context)
        return {"measured": list(found), "seconds": time.perf_counter() - start}

    def _within(self, name: str, source: str) -> Watch:
        return lambda phase, done, total: self.watch(f"{name}, {source}", done, total)

    def _answer(self, loaded: Any, prompts: tuple[str, ...]) -> dict[str, Any]:
        start = time.perf_counter()
        return {"answers": generate(loaded.model, loaded.tokenizer, prompts, self.asked.answer), "seconds": time.perf_counter() - start}

    def _timed(self, models: Sequence[Contender], dtype: str) -> list[Contender]:
        """Speed of all in turn, and the memory that each takes."""
        asked, threads = self.asked, torch.get_num_threads()
        how = {"weights": [model.weights for model in models], "dtype": dtype, "device": asked.device, "threads": threads,
               "rounds": asked.rounds, "read": asked.read, "write": asked.write, **machine()}

        def run() -> list[dict[str, Any]]:
            loaded = [opened(model.source, dtype, asked.device, self.trust).model for model in models]
            return [asdict(timing) for timing in in_pytorch(loaded, asked.read, asked.write, asked.rounds,
                                                            lambda done, total: self.watch("speed, in turn", done, total))]

        timings = self.kept.asked({"part": "speed", **how}, run)
        release_memory()
        found = []
        for model, row in zip(models, timings, strict=True):
            memory = self.kept.asked({"part": "memory", **how, "weights": model.weights}, partial(
                memory_in_pytorch, model.source, asked.read, asked.write, threads, dtype, asked.device, self.trust))
            timing = Timing(tuple(row["prefill"]), tuple(row["first"]), tuple(row["decode"]), row["bytes"])
            found.append(replace(model, timing=timing, memory=memory))
        return found


def _identity(piece: Piece, model: Contender, dense: Contender, device: str) -> dict[str, Any]:
    """All that decides what a look at a model gives."""
    beside = {"dense": dense.weights} if piece.beside_dense else {}
    return {**piece.identity, "weights": model.weights, "read": model.read, "device": device, **beside}
