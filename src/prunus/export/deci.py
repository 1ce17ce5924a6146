"""A folder in the words of NVIDIA's DeciLM (Nemotron-NAS): sizes by block, which vLLM reads as they are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import check_target, folder, save_model
from ..errors import ExportError
from ..modelling import BlockSizes, block_sizes, head_size
from ..traits import model_bytes
from . import Savable

__all__ = ["Deci"]


@dataclass(frozen=True)
class Deci:
    """Llama with MLPs of any width, and without some attentions or MLPs. The first block needs its attention, and all
    attentions as many heads: of these, a config has one number. `transformers` opens the folder with trust_remote_code.
    """

    overwrite: bool = False  # replace files in a folder that is not empty
    shard: str = "1GB"  # largest weight file

    def check(self, pruned: Savable, path: Path) -> None:
        check_target(path, self.overwrite, model_bytes(pruned.model))
        config = pruned.model.config
        if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
            raise ExportError(f"format 'deci' knows llama without biases, not '{config.model_type}'. Use format 'huggingface' or "
                              "'padded'.")
        blocks = block_sizes(pruned.model)
        heads = {block.heads for block in blocks if block.heads}
        if len(heads) > 1:
            raise ExportError(f"format 'deci': blocks have {', '.join(map(str, sorted(heads)))} attention heads, expected as many in "
                              "every block that has any. Use format 'huggingface', 'padded' or 'gguf'.")
        if heads and config.hidden_size % max(heads):
            raise ExportError(f"format 'deci': {max(heads)} attention heads do not divide the hidden size {config.hidden_size}, which "
                              "Llama's config wants. Use format 'huggingface', 'padded' or 'gguf'.")
        if not blocks[0].heads:
            raise ExportError("format 'deci': the first block has no attention, which programs that read it need. Use format "
                              "'huggingface', 'padded' or 'gguf', or keep it (protected = 1).")

    def save(self, pruned: Savable, path: Path) -> None:
        self.check(pruned, path)
        with folder(path) as draft:
            save_model(pruned.model, pruned.tokenizer, draft, self.shard, own_code=True)
            file = draft / "config.json"
            data = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps({**data, **_words(pruned.model)}, indent=2) + "\n", encoding="utf-8")


def _words(model: Any) -> dict[str, Any]:
    """What a DeciLM config says."""
    blocks = block_sizes(model)

    def attention(block: BlockSizes) -> dict[str, Any]:
        there = block.heads > 0
        return {"n_heads_in_group": block.heads // block.groups if there else None, "no_op": not there, "replace_with_linear": False}

    def mlp(block: BlockSizes) -> dict[str, Any]:
        there = block.width > 0
        return {"intermediate_size": block.width if there else None, "no_op": not there, "replace_with_linear": False}

    return {"model_type": "nemotron-nas", "architectures": ["DeciLMForCausalLM"],
            "num_attention_heads": max(block.heads for block in blocks), "num_key_value_heads": max(block.groups for block in blocks),
            "head_dim": head_size(model), "block_configs": [{"attention": attention(block), "ffn": mlp(block)} for block in blocks]}
