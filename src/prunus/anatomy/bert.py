"""BERT: an encoder with separate q, k, v and a plain MLP; norms follow the residual sums."""

from typing import Any

from ..sites import Anatomy, Silent, attention, plain_mlp, stack

__all__ = ["family"]


def family(config: Any) -> Anatomy:
    """The stack at `encoder.layer`."""
    return stack(
        "encoder.layer", config.num_hidden_layers,
        attention(config, "attention", "self.query", "self.key", "self.value", "output.dense",
                  silent=[Silent("attention.self", "pair"), Silent("attention.output.dense", "zeros")], cache=""),
        plain_mlp(config.hidden_size, config.intermediate_size, "intermediate.dense", "output.dense"),
    )
