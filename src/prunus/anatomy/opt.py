"""OPT: separate q, k, v without groups, and a plain MLP; biases everywhere."""

from typing import Any

from ..sites import Anatomy, Size, attention, plain_mlp, stack

__all__ = ["family"]


def family(config: Any) -> Anatomy:
    """The stack at `decoder.layers`; the MLP's two matrices belong to the block itself."""
    before = config.do_layer_norm_before  # else norms follow the residual sums and are needed without the branch
    return stack(
        "decoder.layers", config.num_hidden_layers,
        attention(config, output="out_proj", norms=["self_attn_layer_norm"] if before else [], counted=[Size("self_attn", "num_heads")]),
        plain_mlp(config.hidden_size, config.ffn_dim, "fc1", "fc2", setting="ffn_dim", norms=["final_layer_norm"] if before else []),
    )
