"""The peer's part of how_fast_beside_llmcompressor.py; runs in the peer's environment, without Prunus."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(checkpoint: str, tokens: str, out: str, sparsity: str) -> None:
    table = torch.tensor(json.loads(Path(tokens).read_text()))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    data = Dataset.from_dict({"input_ids": table.tolist(), "attention_mask": torch.ones_like(table).tolist()})
    recipe = SparseGPTModifier(sparsity=float(sparsity), mask_structure="0:0", block_size=128, dampening_frac=0.01,
                               ignore=["re:.*lm_head"])
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=table.shape[1], num_calibration_samples=len(table))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
