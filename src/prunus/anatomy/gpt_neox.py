"""GPT-NeoX (Pythia): q, k, v fused head by head; attention and MLP may run in parallel."""

from typing import Any

from ..sites import Anatomy, Producer, Silent, branch, plain_mlp, stack

__all__ = ["family"]


def family(config: Any) -> Anatomy:
    """The stack at `layers`; each head's q, k, v rows lie together."""
    mlp = plain_mlp(config.hidden_size, config.intermediate_size, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
                    module="mlp", norms=["post_attention_layernorm"])
    return stack("layers", config.num_hidden_layers, _attention(config), mlp)


def _attention(config: Any) -> Any:
    hidden, heads = config.hidden_size, config.num_attention_heads
    fused, output = "attention.query_key_value", "attention.dense"
    matrices = [(fused, 3 * hidden, hidden, "attention.input"), (output, hidden, hidden, f"{output}.input")]
    producers = [Producer(fused, 3 * hidden // heads)]
    return branch("attention", matrices, count=heads, consumer=output, producers=producers, silent=[Silent("attention", "pair")],
                  norms=["input_layernorm"], cache="attention")
