"""What a cut model is to `transformers`: its own family's plain class, or a small file of code beside the weights."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from . import shape as shapes
from .anatomy import describe
from .loading import quiet
from .shape import PREFIX
from .sites import ChannelSite

__all__ = ["MODELLING", "BlockSizes", "block_sizes", "code", "head_size", "plain_config", "shaped_config"]

MODELLING = "modeling_pruned.py"

_HEAD = '''"""A pruned {model}, for `transformers` with trust_remote_code=True: the family's own code with smaller matrices,
and without the branches that were left out. Written by Prunus; Apache-2.0."""
'''
_TAIL = '''
from transformers import {config}, {model}


class PrunedConfig({config}):
    model_type = "{prefix}{family}"


class PrunedModel({model}):
    config_class = PrunedConfig

    def __init__(self, config):
        super().__init__(config)
        reshape(self, getattr(config, "pruned", None) or {{}})
        self.post_init()
'''
_BODY = '''
# This head has its body made by AutoModel.
from transformers import {body}
from transformers.models.auto.modeling_auto import MODEL_MAPPING

MODEL_MAPPING.register(PrunedConfig, {body}, exist_ok=True)
'''


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of one block; 0 where it has no such branch."""

    heads: int
    groups: int  # of keys and values
    width: int  # of the MLP


def code(model: Any) -> str:
    """The modelling file: what reshapes, and two classes that use it."""
    text = inspect.getsource(shapes)
    body = text[text.index("from typing") :]
    names = {"model": type(model).__name__, "config": type(model.config).__name__, "prefix": PREFIX, "family": model.config.model_type}
    generic = any(kind.__name__.startswith("GenericFor") for kind in type(model).__mro__)
    tail = _BODY.format(body=type(model.base_model).__name__) if generic else ""
    return _HEAD.format(**names) + "\n" + body + "\n" + _TAIL.format(**names) + tail


def shaped_config(model: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The data of config.json for a checkpoint that carries its modelling file."""
    module = MODELLING.removesuffix(".py")
    return {**data, "model_type": PREFIX + model.config.model_type, "architecture": type(model).__name__,
            "architectures": ["PrunedModel"],
            "auto_map": {"AutoConfig": f"{module}.PrunedConfig", _auto_class(model): f"{module}.PrunedModel"}}


def _auto_class(model: Any) -> str:
    """The Auto class that makes models of this kind."""
    import transformers.models.auto.modeling_auto as auto

    for kind, mapping in (("AutoModelForCausalLM", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
                          ("AutoModelForMaskedLM", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
                          ("AutoModelForSequenceClassification", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)):
        if type(model).__name__ in mapping.values():
            return kind
    return "AutoModel"


def plain_config(model: Any) -> Any:
    """A config, and the class of transformers, that build exactly this model; None when there are none.

    Llama's config wants the hidden size to be a multiple of the number of heads; Mistral's, of the same mathematics, does not.
    """
    shape = getattr(model.config, "pruned", None)
    if not shape:
        return model.config, type(model)
    if set(shape) - {"matrices", "sizes"}:
        return None
    settings: dict[str, int] = {}
    for site in describe(model).sites("channel"):
        assert isinstance(site, ChannelSite)
        for size in site.settings:
            if settings.setdefault(size.name, size.each * site.count) != size.each * site.count:
                return None
    data = {key: value for key, value in model.config.to_dict().items() if key not in ("pruned", "model_type")}
    if "head_dim" in data or "num_key_value_heads" in settings:
        data["head_dim"] = head_size(model)
    for kind in _builders(model):
        with quiet(), torch.device("meta"):
            try:
                windows = {"sliding_window": None} if kind is not type(model) else {}
                config = kind.config_class.from_dict({**data, **settings, **windows, "architectures": [kind.__name__]})
                built = kind(config)
            except Exception:  # transformers raises many kinds when it cannot build such a model
                continue
        if {name: value.shape for name, value in built.state_dict().items()} == {
                name: value.shape for name, value in model.state_dict().items()}:
            return config, kind
    return None


def head_size(model: Any) -> int:
    """Rows per attention head."""
    config = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def block_sizes(model: Any) -> list[BlockSizes]:
    """Of a Llama, block by block."""
    head = head_size(model)
    found = []
    for block in describe(model).blocks:
        rows = {site.name.rpartition(".")[2]: site.shape[0] for site in block.matrices}
        found.append(BlockSizes(rows.get("q_proj", 0) // head, rows.get("k_proj", 0) // head, rows.get("up_proj", 0)))
    return found


def _builders(model: Any) -> list[Any]:
    import transformers

    found = [type(model)]
    config = model.config
    if config.model_type == "llama" and not (config.attention_bias or config.mlp_bias):
        found.append(getattr(transformers, type(model).__name__.replace("Llama", "Mistral")))
    return found
