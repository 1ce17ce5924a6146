"""One file for llama.cpp: as its own architecture where all blocks are alike, as `deci` where they are not."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from numpy.typing import NDArray

from ..calibration.sample import check_words
from ..errors import ExportError, MissingExtra
from ..files import put_in_place
from ..modelling import BlockSizes, block_sizes, head_size
from . import Savable

__all__ = ["GGUF"]

_FAMILIES = ("llama", "mistral")
_DUMMY = 32  # width of an MLP of zeros, for a block that has none: a multiple of what quantised types pack together
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8}  # llama.cpp's own numbers
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # kinds of tokens

Array = NDArray[Any]


@dataclass(frozen=True)
class GGUF:
    """Llama and Mistral without windows. llama.cpp cannot say that a block has an attention and no MLP, nor that the first
    one has no attention: such branches are written as small ones of zeros, which add nothing.
    """

    overwrite: bool = False  # replace the file
    dtype: Literal["F32", "F16", "Q8_0", "Q5_0", "Q4_0"] = "F16"  # of matrices; norms are always F32; all keep a zero exactly zero

    def check(self, pruned: Savable, path: Path) -> None:
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise MissingExtra("format 'gguf'", "gguf") from None
        if path.exists() and (path.is_dir() or not self.overwrite):
            raise ExportError(f"output '{path}': exists. Name another file or say --overwrite.")
        model: Any = pruned.model
        config = model.config
        if config.model_type not in _FAMILIES:
            raise ExportError(f"format 'gguf' knows {', '.join(_FAMILIES)}, not '{config.model_type}'. Use format 'huggingface' or "
                              "'padded'.")
        kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if kind != "default" or getattr(config, "sliding_window", None):
            raise ExportError(f"format 'gguf': this model has {'rotations of type ' + kind if kind != 'default' else 'a sliding window'}, "
                              "which it cannot say. Use format 'huggingface' or 'padded'.")
        if any(name.endswith("proj.bias") for name, _ in model.named_parameters()):
            raise ExportError("format 'gguf': this model's matrices have biases, which it cannot say. Use format 'huggingface' or "
                              "'padded'.")
        if pruned.tokenizer is not None:
            _tokens(pruned.tokenizer)
            check_words(model, max(pruned.tokenizer.get_vocab().values()), "format 'gguf'")
        for depth, block in enumerate(_blocks(model)):
            if self.dtype.startswith("Q") and block.width % 32:
                raise ExportError(f"format 'gguf', {self.dtype}: the MLP of block {depth} has {block.width} channels, expected a multiple "
                                  "of 32. Use F16.")

    def save(self, pruned: Savable, path: Path) -> None:
        self.check(pruned, path)
        import gguf

        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.tmp")
        model: Any = pruned.model
        blocks = _blocks(model)
        try:
            writer = gguf.GGUFWriter(draft, "llama" if len(set(blocks)) == 1 else "deci")
            _write_config(writer, model, blocks, self.dtype)
            if pruned.tokenizer is not None:
                _write_tokenizer(writer, pruned.tokenizer, model.get_input_embeddings().weight.shape[0])
            for name, value in _tensors(model, blocks):
                _add(writer, name, value, self.dtype)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            put_in_place(draft, path)
        except OSError as error:
            raise ExportError(f"{path}: cannot be written: {error.strerror or error}.") from error
        finally:
            draft.unlink(missing_ok=True)


def _blocks(model: Any) -> list[BlockSizes]:
    """Sizes by block, with those that llama.cpp needs to be there."""
    return [replace(sizes, heads=sizes.heads or int(depth == 0), groups=sizes.groups or int(depth == 0), width=sizes.width or _DUMMY)
            for depth, sizes in enumerate(block_sizes(model))]


def _write_config(writer: Any, model: Any, blocks: list[BlockSizes], dtype: str) -> None:
    config, head = model.config, head_size(model)
    alike = len(set(blocks)) == 1
    heads, groups, widths = ([getattr(block, name) for block in blocks] for name in ("heads", "groups", "width"))
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_block_count(len(blocks))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(heads[0] if alike else heads)
    writer.add_head_count_kv(groups[0] if alike else groups)
    writer.add_feed_forward_length(widths[0] if alike else widths)
    writer.add_key_length(head)  # by default llama.cpp divides the hidden size by the heads of the first block
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: Any, blocks: list[BlockSizes]) -> Iterator[tuple[str, Array]]:
    """Names and values, as llama.cpp has them."""
    config, head = model.config, head_size(model)
    base = model.model
    yield "token_embd.weight", _array(base.embed_tokens.weight)
    yield "output_norm.weight", _array(base.norm.weight)
    if not config.tie_word_embeddings:
        yield "output.weight", _array(model.lm_head.weight)
    hidden = config.hidden_size
    ones, zeros = numpy.ones(hidden, numpy.float32), numpy.zeros
    for depth, (block, layer) in enumerate(zip(blocks, base.layers, strict=True)):
        start = f"blk.{depth}."
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "q_proj"):
            yield f"{start}attn_norm.weight", _array(layer.input_layernorm.weight)
            yield f"{start}attn_q.weight", _interleaved(_array(attention.q_proj.weight), head)
            yield f"{start}attn_k.weight", _interleaved(_array(attention.k_proj.weight), head)
            yield f"{start}attn_v.weight", _array(attention.v_proj.weight)
            yield f"{start}attn_output.weight", _array(attention.o_proj.weight)
        elif block.heads:
            yield f"{start}attn_norm.weight", ones
            for name in ("attn_q", "attn_k", "attn_v"):
                yield f"{start}{name}.weight", zeros((head, hidden), numpy.float32)
            yield f"{start}attn_output.weight", zeros((hidden, head), numpy.float32)
        there = hasattr(mlp, "up_proj")
        yield f"{start}ffn_norm.weight", _array(layer.post_attention_layernorm.weight) if there else ones
        for name, ours in (("ffn_gate", "gate_proj"), ("ffn_up", "up_proj"), ("ffn_down", "down_proj")):
            shape = (hidden, block.width) if name == "ffn_down" else (block.width, hidden)
            yield f"{start}{name}.weight", _array(getattr(mlp, ours).weight) if there else zeros(shape, numpy.float32)


def _array(weight: torch.Tensor) -> Array:
    found: Array = weight.detach().float().cpu().numpy()
    return found


def _interleaved(weight: Array, head: int) -> Array:
    """Rows of every head from halves to neighbouring pairs, which llama.cpp rotates together."""
    rows, inputs = weight.shape
    return weight.reshape(rows // head, 2, head // 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


def _add(writer: Any, name: str, value: Array, dtype: str) -> None:
    import gguf

    if value.ndim == 1 or dtype == "F32":
        writer.add_tensor(name, numpy.ascontiguousarray(value, numpy.float32))
    elif dtype == "F16" or value.shape[1] % 32:
        writer.add_tensor(name, numpy.ascontiguousarray(value, numpy.float16))
    else:
        kind = gguf.GGMLQuantizationType[dtype]
        writer.add_tensor(name, gguf.quants.quantize(numpy.ascontiguousarray(value), kind), raw_dtype=kind)


def _tokens(tokenizer: Any) -> dict[str, Any]:
    """A byte-level BPE tokenizer's own description. Raises ExportError for others."""
    data: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str()) if hasattr(tokenizer, "backend_tokenizer") else {}
    if data.get("model", {}).get("type") != "BPE" or not data["model"]["merges"] or _pre(data) is None:
        raise ExportError("format 'gguf': the tokenizer is not byte-level BPE, with merges, as llama.cpp knows it. Take its metadata from "
                          "the dense model's GGUF, or use format 'huggingface' or 'padded'.")
    return data


_PRE = {  # llama.cpp's name for how text is cut before the merges, by what it is cut at
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}


def _pre(data: dict[str, Any]) -> str | None:
    """llama.cpp's name for the first cut; None when it has none that we know."""
    first = data.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", [first])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex") and not steps[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex"):
        return _PRE.get((steps[0].get("pattern") or {}).get("Regex", ""))
    return None


def _write_tokenizer(writer: Any, tokenizer: Any, rows: int) -> None:
    """Words for all rows of the embeddings: llama.cpp wants as many of one as of the other."""
    data = _tokens(tokenizer)
    words = {**data["model"]["vocab"], **{token["content"]: token["id"] for token in data["added_tokens"]}}
    special = {token["id"]: token["special"] for token in data["added_tokens"]}
    by_place = {place: word for word, place in words.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre(data))
    writer.add_token_list([by_place.get(place, f"[PAD{place}]") for place in range(rows)])
    kinds = {place: _NORMAL if place not in special else _CONTROL if special[place] else _USER for place in by_place}
    writer.add_token_types([kinds.get(place, _UNUSED) for place in range(rows)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]])
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("unk", writer.add_unk_token_id),
                      ("pad", writer.add_pad_token_id)):
        if (place := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            add(place)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    if getattr(tokenizer, "chat_template", None):
        writer.add_chat_template(tokenizer.chat_template)
