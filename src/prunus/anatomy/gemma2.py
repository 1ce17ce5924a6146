"""Gemma 2: as Llama, with a norm after each branch as well as before."""

from typing import Any

from ..sites import Anatomy, attention, gated_mlp, grouped_settings, stack

__all__ = ["family"]


def family(config: Any) -> Anatomy:
    """The stack at `layers`; each block is an attention and a gated MLP."""
    return stack("layers", config.num_hidden_layers,
                 attention(config, norms=["input_layernorm", "post_attention_layernorm"], settings=grouped_settings(config)),
                 gated_mlp(config, norms=["pre_feedforward_layernorm", "post_feedforward_layernorm"]))
