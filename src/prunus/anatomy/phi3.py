"""Phi-3: q, k, v fused in one matrix, gate and up in another."""

from typing import Any

from ..sites import Anatomy, Producer, Silent, Size, branch, grouped_rows, grouped_settings, stack

__all__ = ["family"]


def family(config: Any) -> Anatomy:
    """The stack at `layers`; fused rows lie as q, k, v and as gate, up."""
    return stack("layers", config.num_hidden_layers, _attention(config), _mlp(config))


def _attention(config: Any) -> Any:
    hidden, queries = config.hidden_size, config.num_attention_heads
    groups = config.num_key_value_heads or queries
    head = getattr(config, "head_dim", None) or hidden // queries
    query_rows, rows = grouped_rows(queries, groups, head)
    fused, output = "self_attn.qkv_proj", "self_attn.o_proj"
    matrices = [
        (fused, (queries + 2 * groups) * head, hidden, "self_attn.input"),
        (output, hidden, queries * head, f"{output}.input"),
    ]
    producers = [
        Producer(fused, query_rows),
        Producer(fused, rows, offset=queries * head),
        Producer(fused, rows, offset=(queries + groups) * head),
    ]
    counted = [Size("self_attn", "num_key_value_heads"), Size("self_attn", "config.num_attention_heads", queries // groups)]
    return branch("self_attn", matrices, count=groups, consumer=output, producers=producers, silent=[Silent("self_attn", "pair")],
                  norms=["input_layernorm"], cache="self_attn", counted=counted, settings=grouped_settings(config))


def _mlp(config: Any) -> Any:
    hidden, width = config.hidden_size, config.intermediate_size
    fused, down = "mlp.gate_up_proj", "mlp.down_proj"
    matrices = [(fused, 2 * width, hidden, "mlp.input"), (down, hidden, width, f"{down}.input")]
    producers = [Producer(fused, 1), Producer(fused, 1, offset=width)]
    return branch("mlp", matrices, count=width, consumer=down, producers=producers, silent=[Silent("mlp", "zeros")],
                  norms=["post_attention_layernorm"], settings=[Size("", "intermediate_size")])
