"""A first look at every model, before anything is measured: what it is, how large, what is gone, and whether it can be compared."""

import hashlib
import json
from collections.abc import Callable, Sequence
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
from .made import made_of
from .values import Contender

__all__ = ["hash_of", "looked_at", "opened", "short_names"]


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


def looked_at(sources: Sequence[str], dtype: str, device: str, trust: bool,
              watch: Callable[[str, int | float, int | float], None]) -> tuple[tuple[Contender, ...], str]:
    """Every model, loaded one at a time, and the dtype of all: the dense model's, where `dtype` is auto.

    Raises LoadError, RecipeError, and ComparisonError where two models read other tokens.
    """
    found: list[Contender] = []
    anatomy: Anatomy | None = None
    for place, (name, source) in enumerate(zip(short_names(sources), sources, strict=True)):
        watch("looking at the models", place, len(sources))
        loaded: Any = opened(source, dtype, device, trust)
        model = loaded.model
        dtype = str(model.dtype).removeprefix("torch.")
        own = describe(model)
        anatomy = anatomy or own
        matrices = _counted(model, own, anatomy)
        read = how_read(model, loaded.tokenizer, loaded.stored)
        if found:
            _check_tokens(found[0], name, read)
        files = weight_files(source)
        found.append(Contender(
            name, source, hash_of(loaded), read, parameters_of(model), model_bytes(model),
            sum(file.stat().st_size for file in files) if files else None, sparsity_of(matrices) if matrices else None, matrices,
            len(own.blocks), made_of(source) if Path(source).is_dir() else None, loaded.stored))
        del loaded, model
        release_memory()
    return tuple(found), dtype


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
