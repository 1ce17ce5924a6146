"""A first look at every model, before anything is measured: what it is, how large, what is gone, and whether it can be compared."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..achieved import Counted, counted, sparsity_of
from ..anatomy import describe
from ..calibration.sample import check_tokenizer, how_read
from ..comparison import bare, difference_of
from ..environment import release_memory
from ..errors import ComparisonError, RecipeError
from ..loading import Loaded, load, weight_files
from ..sites import Anatomy
from ..traits import model_bytes, parameters_of, predicts_next
from .kept import Kept
from .made import made_of
from .spending import spending
from .values import Contender, Spent

__all__ = ["Looking", "hash_of", "opened", "short_names"]


def short_names(sources: Sequence[str]) -> tuple[str, ...]:
    """The last part of each, where no two have the same. Raises RecipeError where there are fewer than two, or one is named twice."""
    if len(sources) < 2:
        raise RecipeError(f"compare: {len(sources)} model: expected the dense model and at least one other.")
    same = next((source for source in sources if sources.count(source) > 1), None)
    if same is not None:
        raise RecipeError(f"compare: model '{same}' is named twice: expected every model once.")
    short = [source.rstrip("/").rpartition("/")[2].removeprefix("package:") for source in sources]
    return tuple(name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True))


def opened(source: str, dtype: str, device: str, trust: bool, where: str = "compare") -> Loaded:
    """A model that writes, with its tokenizer. Raises LoadError and RecipeError."""
    loaded = load(source, dtype=dtype, device=device, trust_remote_code=trust)
    if not predicts_next(loaded.model):
        raise RecipeError(f"{where}: model '{source}' does not predict the next token. Score models with a head by prunus evaluate --task.")
    check_tokenizer(loaded.tokenizer, f"{where}: model '{source}'")
    return loaded


@dataclass
class Looking:
    """A look at one model after another, the dense one first; what was seen of files that are the same since then is not seen again."""

    kept: Kept
    device: str
    trust: bool
    dtype: str  # of all; auto until the dense model was seen
    dense: str = ""  # its source
    anatomy: Anatomy | None = None  # the dense model's, once it is needed

    def all(self, sources: Sequence[str], watch: Callable[[str, int | float, int | float], None]) -> tuple[Contender, ...]:
        """Every model, loaded one at a time.

        Raises LoadError, RecipeError, and ComparisonError where two models read other tokens. Nothing is kept before all were seen.
        """
        found: list[Contender] = []
        seen: list[tuple[dict[str, Any], Contender]] = []
        for place, (name, source) in enumerate(zip(short_names(sources), sources, strict=True)):
            watch("looking at the models", place, len(sources))
            identity = self._identity(source, found[0].weights if found else "")
            known = self.kept.recall(identity) if identity else None
            self.dense = self.dense or source
            one = _recalled(known, name, source) if known else self._seen(name, source)
            if found:
                _check_tokens(found[0], name, one.read)
            self.dtype = one.read.partition(",")[0] if not found else self.dtype
            seen += [(identity, one)] if identity and not known else []
            found.append(replace(one, made=made_of(source) if Path(source).is_dir() else None))
        for identity, one in seen:
            self.kept.keep(identity, asdict(one))
        return tuple(found)

    def _seen(self, name: str, source: str) -> Contender:
        """What there is to see, and what it took to see it."""
        one, spent = spending(lambda: self._look(name, source), self.device)
        release_memory()
        return replace(one, spent={"looking": spent})

    def _look(self, name: str, source: str) -> Contender:
        loaded: Any = opened(source, self.dtype, self.device, self.trust)
        model = loaded.model
        own = describe(model)
        if self.anatomy is None:
            self.anatomy = own if source == self.dense else describe(opened(self.dense, self.dtype, self.device, self.trust).model)
        matrices = _counted(model, own, self.anatomy)
        files = weight_files(source)
        return Contender(
            name, source, hash_of(loaded), how_read(model, loaded.tokenizer, loaded.stored), parameters_of(model), model_bytes(model),
            sum(file.stat().st_size for file in files) if files else None, sparsity_of(matrices) if matrices else None, matrices,
            len(own.blocks), None, loaded.stored)

    def _identity(self, source: str, dense: str) -> dict[str, Any]:
        """Of the files of a source, by their sizes and times, and of what else decides what is seen; empty where it has no files here."""
        weights = weight_files(source)
        if not weights:
            return {}
        home = weights[0].parent
        files = sorted(weights if Path(source).is_file() else (file for file in home.iterdir() if file.is_file()))
        states = [(file.name, *(getattr(file.stat(), name) for name in ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")))
                  for file in files]
        return {"part": "look", "files": states, "folder": str(home.absolute()), "dtype": self.dtype, "device": self.device,
                "trust": self.trust, "dense": dense, "prunus": version("prunus"), "transformers": version("transformers")}


def _recalled(known: Mapping[str, Any], name: str, source: str) -> Contender:
    """A model from what was kept of it."""
    matrices = tuple(Counted(matrix["name"], matrix["weights"], matrix["zeros"], matrix["gone"]) for matrix in known["matrices"])
    spent = {part: Spent(**value) for part, value in known["spent"].items()}
    plain = {key: value for key, value in known.items() if key not in ("measured", "answers", "timing", "memory", "made")}
    return Contender(**{**plain, "name": name, "source": source, "matrices": matrices, "spent": spent, "made": None})


def _counted(model: Any, own: Anatomy, dense: Anatomy) -> tuple[Counted, ...]:
    """Nothing where the model was not pruned from the dense one."""
    try:
        return counted(model, own, dense)
    except ComparisonError:
        return ()


def _check_tokens(dense: Contender, name: str, read: str) -> None:
    differ = difference_of(bare(dense.read), bare(read))
    if differ:
        raise ComparisonError(f"{dense.name} and {name}: their tokenizers differ ({differ[0]}; {differ[1]}), so that they read other "
                              "tokens and no test can pair them. Compare models of one tokenizer, or measure each by prunus evaluate.")


@torch.no_grad()
def hash_of(loaded: Any) -> str:
    """Of everything that decides what the model says."""
    found = hashlib.sha256()
    config = {key: value for key, value in loaded.model.config.to_dict().items() if key not in ("_name_or_path", "transformers_version")}
    found.update(json.dumps(config, sort_keys=True, default=str).encode())
    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    found.update((backend.to_str() if backend is not None else repr(sorted(loaded.tokenizer.get_vocab().items()))).encode())
    for name, weight in [*loaded.model.named_parameters(), *loaded.model.named_buffers()]:
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
