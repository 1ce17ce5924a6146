"""Do the defaults transfer? Efforts on small models of three families that they were not chosen on, beside ALPS alone.

No such model comes with the data, so each is trained first, for some minutes on C4, with a tokenizer of the same text. A gap is the
perplexity on held-out C4 minus the dense model's. Models and finished rows are kept in build/, so that an interrupted benchmark goes on
where it stopped.
"""

import statistics
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from _harness import ROOT, Timer, arguments, environment, keep_row, kept_rows, model_and_tokenizer, table, write
from prunus import Recipe, prune
from prunus.calibration.corpus import read, windows
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity
from prunus.finetune import Training, train_supernet
from prunus.recipe import build
from prunus.supernet.standard import Standard

QUESTION = "do_the_defaults_transfer"
KEPT = ROOT / "build" / QUESTION
WORDS, LENGTH, SEEDS = 1024, 128, (0, 1, 2)
_SIZE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {  # MLPs with ReLU and biases; weights stored transposed; gated MLPs and normalised keys
    "opt": {**_SIZE, "ffn_dim": 512, "word_embed_proj_dim": 128, "dropout": 0.0},
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "qwen3": {**_SIZE, "intermediate_size": 384, "num_key_value_heads": 2, "head_dim": 32},
}
PATTERNS: dict[str, tuple[float, str]] = {"50 %": (0.5, "unstructured"), "70 %": (0.3, "unstructured"), "2:4": (0.5, "2:4")}
WAYS: dict[str, dict[str, str]] = {"ALPS": {"solver": "alps"}} | {name: {"effort": name} for name in ("fast", "balanced", "best")}


def main() -> None:
    options = arguments(__doc__ or "")
    rows = [] if options.tiny else kept_rows(KEPT / "rows.jsonl")
    keys = [(family, "", "dense", 0) for family in FAMILIES]
    keys += [(family, pattern, way, seed) for seed in SEEDS for family in FAMILIES for pattern in PATTERNS for way in WAYS]
    for key in keys[:1] + keys[-4:] if options.tiny else keys:
        if not any((row["family"], row["pattern"], row["way"], row["seed"]) == key for row in rows):
            row = _row(options.tiny, *key)
            rows.append(row if options.tiny else keep_row(KEPT / "rows.jsonl", row))
            print(row, flush=True)
    if not options.tiny:
        write(QUESTION, f"{rows[0]['protocol']}; calibration: c4 train, 64 sequences of {LENGTH}, and what an effort lets the "
              f"model write; shares of ALPS's gap, means over {len(SEEDS)} seeds", rows, {QUESTION: _shown(rows)})


def _row(tiny: bool, family: str, pattern: str, way: str, seed: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, tokenizer = model_and_tokenizer(True, family=family) if tiny else _trained(family)
    metric = Perplexity("builtin", tokens=640, length=64) if tiny else Perplexity("c4", "validation", tokens=61_440, length=LENGTH)
    with Timer() as timer:
        if pattern:
            limit, granularity = PATTERNS[pattern]
            text = {"corpus": "builtin", "samples": 4, "length": 64} if tiny else {"corpus": "c4", "samples": 64, "length": LENGTH}
            stage = {**WAYS[way], "budget": {"limit": limit}, "granularity": granularity}
            recipe: Recipe = build(Recipe, {"stage": [stage], "calibration": text, "metrics": [], "prompts": [], "seed": seed}, "recipe")
            prune(model, recipe, tokenizer=tokenizer)
    measured = metric.measure(model, Context(tokenizer))
    return {"family": family, "pattern": pattern, "way": way, "seed": seed, "perplexity": measured.value, "processor_seconds": timer.cpu,
            "protocol": measured.protocol, "commit": environment()["commit"]}


def _trained(family: str) -> tuple[Any, Any]:
    """A model that has read C4 once, and its tokenizer; as they were kept, if they were."""
    folder = KEPT / family
    if not (folder / "config.json").exists():
        tokenizer = _tokenizer()
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, vocab_size=WORDS, max_position_embeddings=2 * LENGTH, bos_token_id=0,
                                                   eos_token_id=0, pad_token_id=0, **FAMILIES[family])
        model = transformers.AutoModelForCausalLM.from_config(config)
        text = windows(read("c4"), tokenizer, LENGTH, None, seed=0)
        print(f"{family}: {model.num_parameters():,} parameters, {text.numel():,} tokens", flush=True)
        train_supernet(model, None, Standard(), text, Training(epochs=1, batch=16, rate=3e-3, warmup=0.05, clip=1.0))
        tokenizer.save_pretrained(folder)
        model.eval().save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def _tokenizer() -> Any:
    """Pairs of bytes, those that C4 has most often."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(read("c4").documents, trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="</s>", pad_token="</s>")


def _shown(rows: list[dict[str, Any]]) -> str:
    """Perplexities, and gaps as shares of ALPS's."""
    def mean(family: str, pattern: str, way: str) -> float:
        return statistics.fmean(row["perplexity"] for row in rows if (row["family"], row["pattern"], row["way"]) == (family, pattern, way))

    lines = []
    for family in FAMILIES:
        dense = mean(family, "", "dense")
        for pattern in PATTERNS:
            alps = mean(family, pattern, "ALPS")
            shares = ((mean(family, pattern, way) - dense) / (alps - dense) for way in list(WAYS)[1:])
            lines.append([family, f"{dense:.1f}", pattern, f"{alps:.1f}", *(f"{share:.2f}" for share in shares)])
    return table(["family", "dense", "pruned to", "ALPS", *(f"gap of {way}" for way in list(WAYS)[1:])], lines)


if __name__ == "__main__":
    main()
