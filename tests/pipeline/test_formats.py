"""Formats for other programs: each says what the model says, or refuses before a byte is written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from prunus.anatomy import describe
from prunus.errors import ExportError, LoadError
from prunus.export.huggingface import save
from prunus.loading import Loaded, load
from prunus.surgery.cut import cut, skip

from ..tiny import CAUSAL, FAMILIES, tiny_model, tiny_tokenizer

TOKENS = torch.arange(2 * 20).view(2, 20) * 7 % 256


def loaded(model: Any) -> Loaded:
    return Loaded(model, tiny_tokenizer(), "tiny")


@torch.no_grad()
def logits(model: Any) -> Any:
    return model.eval()(input_ids=TOKENS).logits


def narrowed(model: Any, *kinds: str) -> Any:
    """Every block loses other channels, of branches whose path ends in one of `kinds`."""
    sites = [site for site in describe(model).sites("channel") if site.branch.endswith(kinds)]
    cut(model, describe(model), {site.name: torch.arange(site.count) % (2 + index) != 0 for index, site in enumerate(sites)})
    return model


def without(model: Any, *places: int) -> Any:
    names = [site.name for site in describe(model).sites("sublayer")]
    skip(model, describe(model), [names[place] for place in places])
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_is_plain_and_says_the_same(family: str, tmp_path: Path) -> None:
    model = without(narrowed(tiny_model(family), ""), 0)
    save(loaded(model), tmp_path / "out", "padded")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config
    assert "pruned" not in config
    assert not list((tmp_path / "out").glob("*.py"))
    again, report = getattr(transformers, FAMILIES[family][2]).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert (logits(again) - logits(model)).abs().max() < 1e-4


def test_padded_is_as_narrow_as_the_widest_block(tmp_path: Path) -> None:
    model = tiny_model()
    sites = describe(model).sites("channel")
    cut(model, describe(model), {sites[1].name: torch.arange(48) < 40, sites[3].name: torch.arange(48) < 24})
    save(loaded(model), tmp_path / "out", "padded")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 40


def test_deci_says_sizes_by_block_and_transformers_opens_it(tmp_path: Path) -> None:
    model = without(narrowed(tiny_model(num_hidden_layers=4), "mlp"), 2, 5)
    save(loaded(model), tmp_path / "out", "deci")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("nemotron-nas", ["DeciLMForCausalLM"])
    words = config["block_configs"]
    assert [block["attention"]["no_op"] for block in words] == [False, True, False, False]
    assert [block["ffn"]["no_op"] for block in words] == [False, False, True, False]
    assert [block["ffn"]["intermediate_size"] for block in words] == [24, 32, None, 38]
    assert {block["attention"]["n_heads_in_group"] for block in words} == {2, None}
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(load(tmp_path / "out").model), logits(model))


@pytest.mark.parametrize(("model", "reason"), [
    (lambda: without(tiny_model(), 0), "the first block has no attention"),
    (lambda: narrowed(tiny_model(), "0.self_attn"), "blocks have 2, 4 attention heads"),
    (lambda: tiny_model("gpt2"), "knows llama without biases, not 'gpt2'"),
])
def test_deci_refuses_what_it_cannot_say(model: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=reason):
        save(loaded(model()), tmp_path / "new" / "out", "deci")
    assert not (tmp_path / "new").exists()


SPARSE = """
import sys, torch, transformers
assert "prunus" not in sys.modules
model, report = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
tokens = torch.arange(40).view(2, 20) * 7 % 256
torch.save({"weights": dict(model.state_dict()), "logits": model.eval()(input_ids=tokens).logits}, sys.argv[3])
"""


def thinned(model: Any) -> Any:
    for site in describe(model).sites("linear"):
        weight = model.get_submodule(site.name).weight.data
        weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.6] = 0
    return model


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sparse_is_smaller_and_opened_bit_for_bit_without_prunus(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    wide = {} if family in ("gpt2", "opt", "gpt_neox") else {"hidden_size": 128, "intermediate_size": 256}
    model = without(thinned(tiny_model(family, dtype, **wide)), 1)
    save(loaded(model), tmp_path / "out", "sparse")
    save(loaded(model), tmp_path / "dense")
    small, whole = (sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors")) for name in ("out", "dense"))
    assert small < 0.8 * whole
    ran = subprocess.run([sys.executable, "-c", SPARSE, str(tmp_path / "out"), "AutoModelForCausalLM", str(tmp_path / "found.pt")],
                         capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    close = 1e-5 if dtype == torch.float32 else 1e-2  # where a tensor lies in memory may change which kernel multiplies it
    assert torch.allclose(found["logits"], logits(model), rtol=close, atol=close)
    for weights in (found["weights"], load(tmp_path / "out").model.state_dict()):
        assert weights.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert weights[name].dtype == value.dtype
            assert torch.equal(weights[name], value), name


def test_sparse_is_refused_where_it_would_be_larger(tmp_path: Path) -> None:
    """Weights of random bits cannot be compressed."""
    model = tiny_model(dtype=torch.float16, hidden_size=128, intermediate_size=256)
    for index, parameter in enumerate(model.parameters()):
        bits = torch.randint(0, 256, (2 * parameter.numel(),), generator=torch.Generator().manual_seed(index)).to(torch.uint8)
        parameter.data = bits.view(torch.float16).view(parameter.shape)
    with pytest.raises(ExportError, match="too few weights are 0"):
        save(loaded(model), tmp_path / "out", "sparse")
    assert not (tmp_path / "out").exists()


def test_sparse_fails_without_its_code_and_when_it_is_damaged(tmp_path: Path) -> None:
    save(loaded(thinned(tiny_model(hidden_size=128, intermediate_size=256))), tmp_path / "out", "sparse")
    with pytest.raises((OSError, ValueError)):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "sparse.safetensors"
    data = file.read_bytes()
    for damaged in (data[:-100], data[: len(data) // 2] + bytes(100) + data[len(data) // 2 + 100 :]):
        file.write_bytes(damaged)
        with pytest.raises(LoadError, match="damaged") as refused:
            load(tmp_path / "out")
        assert str(refused.value).count("sparse.safetensors") == 1


def test_a_format_takes_what_was_loaded_from_a_folder(tmp_path: Path) -> None:
    save(loaded(without(tiny_model(), 1)), tmp_path / "first")
    save(load(tmp_path / "first"), tmp_path / "second", "padded")
    assert (logits(load(tmp_path / "second").model) - logits(load(tmp_path / "first").model)).abs().max() < 1e-5
    shutil.rmtree(tmp_path / "second")
