"""Sub-networks that are trained by themselves before they are valued: what Klein et al. 2024 call standard NAS."""

import copy
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .calibration.blocks import evaluating
from .calibration.tasks import Encoded
from .environment import Clock
from .errors import LoadError
from .files import fingerprint, intact, keep_tensors
from .finetune import Training, TrainingProgress, digest_of, train_supernet
from .search.subnetwork import Kept, Units
from .supernet.standard import Standard
from .targets import Following, Predicted
from .trainable import accelerated
from .traits import weight_norms

__all__ = ["FOLDER", "Alone", "fill", "of_text", "weights_file"]

FOLDER = "trained"  # of what was trained, in the folder of a search

_TOP = 256  # of the dense model's tokens that the divergence tells apart, as in searches of shared weights


@dataclass(frozen=True, eq=False)
class Alone:
    """Makes sub-networks models of their own, cut out of the dense model and trained each by itself from its weights.

    In `folder` are the weights of every sub-network, until they are told to go, and of one that may be trained further the state of
    its training, from which it goes on. Equal trainings give equal weights, so what is missing there costs time and changes nothing.
    """

    model: Any  # the dense one, which stays as it is
    units: Units
    training: Training
    data: Encoded | Tensor  # that they are trained on
    longest: int  # the resource that stands for the whole training; a share of it for that share of the steps
    folder: Path
    watch: Callable[[TrainingProgress], None] | None = None
    clock: Clock = field(default_factory=Clock)  # which counts training apart from what it is a part of

    def check(self) -> None:
        """Refuse a training that no sub-network could have. Raises MissingExtra or RecipeError."""
        with accelerated(self.training.precision, next(self.model.parameters()).device):
            pass

    def network(self, kept: Kept, resource: int = 0) -> Any:
        """The trained sub-network: from the folder, or now; with resource 0 by the whole training. Raises what goes wrong in it."""
        found, file = copy.deepcopy(self.model), weights_file(self.folder, kept, resource)
        self.units.extract(found, kept)
        note = intact(file)
        if note and note["identity"] == self.identity:
            fill(found, file)
            return found
        share = resource / self.longest if resource else 1.0
        start, finished = time.perf_counter(), False
        try:
            with self.clock.apart("training"):
                train_supernet(found, None, Standard(), self.data, self.training, folder=file.parent, watch=self.watch, share=share)
            keep_tensors(file, {name: value.detach().contiguous() for name, value in found.named_parameters()}, identity=self.identity)
            finished = True
        except Exception:
            _delete(file.parent.glob("step-*"))  # it would fail again at the same place
            raise
        finally:
            self._log(file, time.perf_counter() - start, finished)
        if share == 1:
            _delete(file.parent.glob("step-*"))
        return found

    def forget(self, kept: Kept, resource: int = 0) -> None:
        """Delete the weights of a sub-network."""
        file = weights_file(self.folder, kept, resource)
        _delete((file, file.with_name(f"{file.name}.json")))

    def keep(self, points: Collection[tuple[Kept, int]]) -> None:
        """Delete all weights but those of some sub-networks, and all states of trainings."""
        files = {weights_file(self.folder, kept, resource).relative_to(self.folder) for kept, resource in points}
        staying = files | {file.with_name(f"{file.name}.json") for file in files}
        _delete(file for file in self.folder.glob("*/*") if file.relative_to(self.folder) not in staying)

    @property
    def seconds(self) -> float:
        """Of all trainings so far, those before an interruption and those that failed too."""
        lines = self._book.read_text(encoding="utf-8").splitlines() if self._book.is_file() else []
        return float(sum(json.loads(line)["seconds"] for line in lines))

    @property
    def _book(self) -> Path:
        return self.folder / "log.jsonl"

    def _log(self, file: Path, seconds: float, finished: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._book.open("a", encoding="utf-8") as book:
            book.write(json.dumps({"weights": str(file.relative_to(self.folder)), "seconds": seconds, "finished": finished}) + "\n")

    @cached_property
    def identity(self) -> str:
        """A hash of all that decides the weights of a sub-network."""
        return fingerprint(repr(self.training), str(self.longest), digest_of(self.data), *weight_norms(self.model))


def weights_file(folder: Path, kept: Kept, resource: int) -> Path:
    """Where the weights of a trained sub-network are."""
    key = fingerprint(*(f"{name} {mask.int().tolist()}" for name, mask in sorted(kept.items())))
    return folder / key / f"weights-{resource:04}.safetensors"


def fill(model: Any, file: Path) -> None:
    """Give a sub-network, which was cut out of the dense model, the weights that it was trained to. Raises LoadError."""
    from safetensors.torch import load_file

    if not intact(file):
        raise LoadError(f"{file}: the weights that this point was trained to are missing or damaged. Run the search again with --resume.")
    tensors = load_file(file)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise LoadError(f"{file}: holds the weights of another model.")
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[name])


def of_text(dense: Any, tokens: Int[Tensor, "samples length"], names: Collection[str]) -> Callable[[Any], Mapping[str, float]]:
    """Values models on a text, in nats per token: "loss" is the negative log-likelihood of the tokens that come next, "divergence" KL
    (dense || model), as searches of shared weights define it; those of them that are in `names`."""
    rows: Sequence[Tensor] = tokens.split(1)
    device = next(dense.parameters()).device
    said = [Predicted.of((_logits(dense, row.to(device)),), _TOP) for row in rows] if "divergence" in names else []

    def of(model: Any) -> Mapping[str, float]:
        losses = {"loss": 0.0, "divergence": 0.0}
        for index, row in enumerate(rows):
            logits = _logits(model, row.to(device))
            losses["loss"] += Following(row[:, 1:].to(device)).loss((logits,)) / (tokens.shape[1] - 1)
            if said:
                losses["divergence"] += said[index].loss((logits,)) / tokens.shape[1]
        return {name: loss / len(rows) for name, loss in losses.items()}

    return of


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    with evaluating(model):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _delete(files: Iterable[Path]) -> None:
    """Files, and the folders that are empty without them."""
    for file in list(files):
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()
