"""Every model measured in the same way, one in memory at a time but for speed; what is known already is not measured again."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from .averages import with_mean
from .kept import Kept, measurement_of
from .looking import opened
from .spending import spending
from .values import Asked, Contender, Spent

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
    from ..harness.catalogue import quiet

    with quiet():
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
    spent: dict[str, Spent] = field(default_factory=dict)  # on what is not of one model, by part

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
        spent = dict(model.spent)
        for piece in self.pieces:
            result = self.kept.asked(_identity(piece, model, models[0], self.asked.device),
                                     partial(self._measure, piece, at_hand, dense, models[0]))
            measured += map(measurement_of, result["measured"])
            spent[piece.name] = Spent(**result["spent"])
        identity = {"part": "answers", "weights": model.weights, "read": model.read, "prompts": prompts, "tokens": self.asked.answer,
                    "device": self.asked.device, "prunus": version("prunus")}
        answered = self.kept.asked(identity, lambda: self._answer(at_hand(), prompts))
        loaded.clear()
        release_memory()
        return replace(model, measured=with_mean(measured), answers=tuple(answered["answers"]),
                       spent={**spent, "answers": Spent(**answered["spent"])})

    def _predictions(self, models: Sequence[Contender], dtype: str, dense: dict[str, Any], at_hand: Callable[[], Any]) -> None:
        """What the dense model predicted on texts that another model has not read yet; it reads a text again where this was not kept."""
        for piece in self.pieces:
            identities = [_identity(piece, model, models[0], self.asked.device) for model in models]
            known = [self.kept.has(identity) for identity in identities]
            if not piece.beside_dense or not known[0] or all(known):
                continue
            kept = self.kept.predictions(identities[0], self.asked.device)
            if kept:
                dense[kept[0]] = kept[1:]
            else:
                again = self._measure(piece, at_hand, dense, models[0])
                self.spent[f"{piece.name}, {models[0].name} again"] = Spent(**again["spent"])

    def _measure(self, piece: Piece, at_hand: Callable[[], Any], dense: dict[str, Any], first: Contender) -> dict[str, Any]:
        loaded, before = at_hand(), set(dense)
        self.watch(f"{piece.name}, {loaded.source}", 0, 1)
        context = Context(loaded.tokenizer, self.asked.device, self._within(piece.name, loaded.source), dense, loaded.stored)
        found, spent = spending(lambda: piece.metric.measure(loaded.model, context), self.asked.device, loaded.model)
        for key in dense.keys() - before:
            self.kept.keep_predictions(_identity(piece, first, first, self.asked.device), key, *dense[key])
        return {"measured": list(found), "spent": asdict(spent)}

    def _within(self, name: str, source: str) -> Watch:
        return lambda phase, done, total: self.watch(f"{name}, {source}", done, total)

    def _answer(self, loaded: Any, prompts: tuple[str, ...]) -> dict[str, Any]:
        answers, spent = spending(lambda: generate(loaded.model, loaded.tokenizer, prompts, self.asked.answer), self.asked.device,
                                  loaded.model)
        return {"answers": answers, "spent": asdict(spent)}

    def _timed(self, models: Sequence[Contender], dtype: str) -> list[Contender]:
        """Speed of all in turn, and the memory that each takes."""
        asked, threads = self.asked, torch.get_num_threads()
        how = {"weights": [model.weights for model in models], "dtype": dtype, "device": asked.device, "threads": threads,
               "rounds": asked.rounds, "read": asked.read, "write": asked.write, **machine()}

        def run() -> list[dict[str, Any]]:
            loaded = [opened(model.source, dtype, asked.device, self.trust).model for model in models]
            return [asdict(timing) for timing in in_pytorch(loaded, asked.read, asked.write, asked.rounds,
                                                            lambda done, total: self.watch("speed, in turn", done, total))]

        timed = self.kept.asked({"part": "speed", **how}, lambda: self._costed(run, len(models) * (asked.rounds + 1)))
        self.spent["speed, all models in turn"] = Spent(**timed["spent"])
        release_memory()
        found = []
        for model, row in zip(models, timed["found"], strict=True):
            look = partial(memory_in_pytorch, model.source, asked.read, asked.write, threads, dtype, asked.device, self.trust)
            memory = self.kept.asked({"part": "memory", **how, "weights": model.weights}, partial(self._costed, look, 2))
            timing = Timing(tuple(row["prefill"]), tuple(row["first"]), tuple(row["decode"]), row["bytes"])
            found.append(replace(model, timing=timing, memory=memory["found"], spent={**model.spent, "memory": Spent(**memory["spent"])}))
        return found

    def _costed(self, measure: Callable[[], Any], rounds: int) -> dict[str, Any]:
        """What is timed, in so many rounds of reading and writing; nothing looks into the models meanwhile."""
        found, spent = spending(measure, self.asked.device)
        return {"found": found, "spent": asdict(replace(spent, tokens=float(rounds * (self.asked.read + self.asked.write))))}


def _identity(piece: Piece, model: Contender, dense: Contender, device: str) -> dict[str, Any]:
    """All that decides what a look at a model gives."""
    beside = {"dense": dense.weights} if piece.beside_dense else {}
    versions = {name: found for name, found in machine().items() if name in ("torch", "transformers")}
    return {**piece.identity, "weights": model.weights, "read": model.read, "device": device, **versions, **beside}
