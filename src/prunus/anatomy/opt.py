"""OPT: separate q, k, v without groups, and a plain MLP; biases everywhere."""

from typing import Any

from ..sites import Anatomy, attention, plain_mlp, stack

__all__ = ["family"]


def family(config: Any) -> Anatomy:
    """The stack at `decoder.layers`; the MLP's two matrices belong to the block itself."""
    return stack(
        "decoder.layers", config.num_hidden_layers,
        attention(config, output="out_proj"),
        plain_mlp(config.hidden_size, config.ffn_dim, "fc1", "fc2"),
    )
