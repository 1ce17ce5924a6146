"""Tiny random models of every family, built from configs, and a tokenizer of bytes; nothing is downloaded."""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prunus.anatomy import describe
from prunus.sites import ChannelSite, SublayerSite
from prunus.surgery.cut import cut, skip

WORDS = 260

_LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 257,
          "pad_token_id": 257}
_BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": WORDS,
         "max_position_embeddings": 128, "pad_token_id": 1}

# model_type: (config class, settings, model class)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", _LLAMA, "LlamaForCausalLM"),
    "mistral": ("MistralConfig", {**_LLAMA, "head_dim": 16, "sliding_window": 8}, "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", _LLAMA, "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 16}, "Qwen3ForCausalLM"),
    "gemma2": ("Gemma2Config", {**_LLAMA, "head_dim": 16, "sliding_window": 8}, "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", {**_LLAMA, "head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2},
                    "Gemma3ForCausalLM"),
    "phi3": ("Phi3Config", _LLAMA, "Phi3ForCausalLM"),
    "opt": ("OPTConfig", {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "vocab_size": WORDS, "max_position_embeddings": 128, "word_embed_proj_dim": 32, "bos_token_id": 256,
                          "eos_token_id": 257, "pad_token_id": 257}, "OPTForCausalLM"),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": WORDS,
                            "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}, "GPT2LMHeadModel"),
    "gpt_neox": ("GPTNeoXConfig", {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                                   "num_attention_heads": 4, "vocab_size": WORDS, "max_position_embeddings": 128,
                                   "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}, "GPTNeoXForCausalLM"),
    "bert": ("BertConfig", _BERT, "BertForMaskedLM"),
    "roberta": ("RobertaConfig", _BERT, "RobertaForSequenceClassification"),
    "distilbert": ("DistilBertConfig", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": WORDS,
                                        "max_position_embeddings": 128, "pad_token_id": 1},
                   "DistilBertForSequenceClassification"),
}
CAUSAL = tuple(name for name, (_, _, kind) in FAMILIES.items() if "LM" in kind and "Masked" not in kind)


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A two-block model with weights drawn by a seed that leaves the global generator alone."""
    config, settings, kind = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, kind)(getattr(transformers, config)(**{**settings, **changes}))
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    for parameter in model.parameters():  # as from_pretrained does: rotations stay float32
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def tiny_classifier(family: str) -> Any:
    """A decoder with a head of two classes."""
    config, settings, _ = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_config(getattr(transformers, config)(**settings)).eval()


def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte; 256 is BOS and 257 is EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)} | {"<s>": 256, "</s>": 257, "<a>": 258, "<b>": 259}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def branches_of(model: Any) -> tuple[SublayerSite, ...]:
    """Its attentions and MLPs, in depth order."""
    return tuple(site for site in describe(model).sites("sublayer") if isinstance(site, SublayerSite))


def channels_of(model: Any) -> tuple[ChannelSite, ...]:
    """Its sites of channels, in depth order."""
    return tuple(site for site in describe(model).sites("channel") if isinstance(site, ChannelSite))


def uneven(family: str) -> Any:
    """Blocks of different widths, and one without attention."""
    model = tiny_model(family)
    sites = describe(model).sites("channel")
    cut(model, describe(model), {site.name: torch.arange(site.count) % (2 + index) != 0 for index, site in enumerate(sites)})
    skip(model, describe(model), [next(site.name for site in describe(model).sites("sublayer") if site.block == 1)])
    return model
