"""GPT-2: q, k, v fused; every matrix is a Conv1D, stored as (in, out)."""

from typing import Any

from ..sites import Anatomy, Producer, Silent, Size, branch, plain_mlp, stack

__all__ = ["family"]


def family(config: Any) -> Anatomy:
    """The stack at `h`; fused rows lie as q, k, v."""
    width = config.n_inner or 4 * config.hidden_size
    mlp = plain_mlp(config.hidden_size, width, "mlp.c_fc", "mlp.c_proj", setting="n_inner", module="mlp", norms=["ln_2"])
    return stack("h", config.num_hidden_layers, _attention(config), mlp)


def _attention(config: Any) -> Any:
    hidden, heads = config.hidden_size, config.num_attention_heads
    fused, output = "attn.c_attn", "attn.c_proj"
    matrices = [(fused, 3 * hidden, hidden, "attn.input"), (output, hidden, hidden, f"{output}.input")]
    producers = [Producer(fused, hidden // heads, offset=part * hidden) for part in range(3)]
    return branch("attn", matrices, count=heads, consumer=output, producers=producers, silent=[Silent("attn", "pair")], norms=["ln_1"],
                  cache="attn", counted=[Size("attn", "num_heads"), Size("attn", "split_size", hidden // heads)])
