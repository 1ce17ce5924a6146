"""DistilBERT: BERT's block under other names."""

from typing import Any

from ..sites import Anatomy, attention, plain_mlp, stack

__all__ = ["family"]


def family(config: Any) -> Anatomy:
    """The stack at `transformer.layer`."""
    return stack(
        "transformer.layer", config.num_hidden_layers,
        attention(config, "attention", "q_lin", "k_lin", "v_lin", "out_lin", cache=""),
        plain_mlp(config.hidden_size, config.hidden_dim, "ffn.lin1", "ffn.lin2", path="ffn", setting="hidden_dim", module="ffn"),
    )
