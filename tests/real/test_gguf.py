"""A GGUF file is dequantised once, quietly and exactly, and becomes a plain checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

from prunus.errors import LoadError
from prunus.loading import load

from ..tiny import tiny_model

pytestmark = pytest.mark.real
WORDS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>", "<a>", "<b>", "Ġt"]


def model() -> Any:
    return tiny_model("llama", vocab_size=len(WORDS))


def write(file: Path, leave_out: str = "") -> Path:
    """The tiny Llama in float32, as llama.cpp lays it out, perhaps without one of its tensors."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model().config.rms_norm_eps)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * len(WORDS))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, value in model().state_dict().items():
        if name != leave_out:
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), _interleaved(name, value).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf")


def _interleaved(name: str, value: torch.Tensor) -> torch.Tensor:
    """llama.cpp stores the two rotated halves of every head of q and k in turn."""
    heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
    if not heads:
        return value
    out, width = value.shape
    return value.view(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width).contiguous()


def test_it_loads_bit_for_bit_and_says_nothing(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    capfd.readouterr()
    loaded = load(tiny_gguf)
    assert capfd.readouterr() == ("", "")
    found = loaded.model.state_dict()
    for name, value in model().state_dict().items():
        assert torch.equal(found[name], value), name
    assert not hasattr(loaded.model.config, "quantization_config")
    assert loaded.tokenizer.decode(loaded.tokenizer("a plum tree")["input_ids"]) == "a plum tree"


def test_the_cache_is_named_by_content_so_that_another_file_is_read_anew(tiny_gguf: Path, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    load(tiny_gguf)
    load(tiny_gguf)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    changed = bytearray(tiny_gguf.read_bytes())
    changed[-4:] = b"\0\0\0\0"
    tiny_gguf.write_bytes(changed)
    load(tiny_gguf)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_missing_weights_are_refused_by_name_rather_than_drawn_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "tiny.gguf", leave_out="model.layers.1.mlp.up_proj.weight")
    with torch.random.fork_rng(devices=[]), pytest.raises(LoadError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        load(file)
    assert not list(tmp_path.glob("cache/*"))
