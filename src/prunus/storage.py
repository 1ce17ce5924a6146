"""In how many bits a checkpoint stores its weights, which are numbers of one dtype once it is loaded."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import LoadError, MissingExtra
from .files import readable

__all__ = ["QUANTISATION", "packed_as", "stored_in_gguf"]

QUANTISATION = "quantisation.json"  # what a folder of quantised weights says of how they came about


def packed_as(config: Any, place: Path | str, source: str) -> str:
    """How the weights of a checkpoint of compressed-tensors are stored; empty of a plain one. Its config will make it a plain model.

    Raises LoadError where weights are quantised in another way, and MissingExtra.
    """
    said: Any = getattr(config, "quantization_config", None)
    if said is None:
        return ""
    data = said if isinstance(said, dict) else said.to_dict()
    method, groups = data.get("quant_method"), list((data.get("config_groups") or {}).values())
    if method != "compressed-tensors" or len(groups) != 1 or groups[0].get("input_activations"):
        what = f"'{method}'" if method != "compressed-tensors" else "compressed-tensors in several ways, or with activations"
        raise LoadError(f"model '{source}': its weights are quantised by {what}, which is not known here. Known: compressed-tensors, one "
                        "way for all and of weights alone. Name the checkpoint that it was made from.")
    if find_spec("compressed_tensors") is None:
        raise MissingExtra(f"reading the quantised weights of '{source}'", "quant")
    config.quantization_config = {**data, "dequantize": True}
    facts = readable(Path(place) / QUANTISATION)
    if isinstance(facts, dict) and isinstance(facts.get("weights"), str):
        return str(facts["weights"])
    weights = groups[0]["weights"]
    size = weights.get("group_size") or 0
    return f"{weights.get('type', 'int')}{weights['num_bits']} {f'in groups of {size}' if size > 0 else 'by row'}"


def stored_in_gguf(file: Path) -> str:
    """The kind of numbers that most weights of a GGUF file are. Raises LoadError where transformers cannot read it."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except Exception as error:  # numpy's, of many kinds
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
        raise LoadError(f"{file}: a damaged or truncated GGUF file ({reason}). Download, copy or export it again.") from None
    name = reader.fields.get("general.architecture")
    if name is not None and name.contents() == "deci":
        raise LoadError(f"{file}: of llama.cpp's architecture 'deci', which transformers does not read. Name the folder that it was "
                        "exported from.")
    counts: Counter[str] = Counter()
    for tensor in reader.tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return f"GGUF {counts.most_common(1)[0][0]}" if counts else ""
