"""prunus quantise: what it writes and says, what it refuses, and that its folder is a model like any other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from prunus.loading import load

from .conftest import Ran

pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed (pip install 'prunus[quant]')")
pytestmark = pytest.mark.filterwarnings("ignore")
Prunus = Callable[..., Ran]


@pytest.fixture
def pruned(prunus: Prunus, quick: list[Any], tmp_path: Path) -> Path:
    assert prunus(*quick, "--sparsity", "0.5", "--solver", "magnitude", "--quiet").code == 0
    return tmp_path / "out"


@pytest.fixture
def words(pruned: Path, text_file: Path, tmp_path: Path) -> list[Any]:
    """Later flags win over these."""
    return ["quantise", pruned, "--out", tmp_path / "small", "--group", 16, "--calibration", text_file, "--samples", 4, "--length", 32]


def test_a_pruned_folder_becomes_a_smaller_one_with_the_same_zeros(prunus: Prunus, words: list[Any], pruned: Path, tmp_path: Path) -> None:
    ran = prunus(*words)
    assert (ran.code, ran.out) == (0, "")
    told = " ".join(ran.err.split())
    assert "int4 in groups of 16 by gptq, in " in told
    assert "Zeros: 50.00% of the block weights before, " in told
    assert "Relative output error 0.0" in told
    assert f"Saved to {tmp_path / 'small'}" in told
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "small", pruned)]
    assert sizes[0] < 0.75 * sizes[1]
    before, after = load(pruned).model.state_dict(), load(tmp_path / "small").model.state_dict()
    assert all((after[name][weight == 0] == 0).all() for name, weight in before.items())
    assert {file.name for file in (tmp_path / "small").iterdir()} >= {"quantisation.json", "recipe.toml", "report.json", "tokenizer.json"}
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").config.model_type == "llama"


def test_evaluate_says_how_weights_are_stored_and_pairs_them_with_dense(prunus: Prunus, words: list[Any], pruned: Path, text_file: Path,
                                                                        tmp_path: Path) -> None:
    prunus(*words, "--method", "gptq,damping=0.1", "--bits", 8, "--quiet")
    asked = ["evaluate", tmp_path / "small", "--dense", pruned, "--corpus", text_file, "--length", 32, "--tokens", 320]
    ran = prunus(*asked)
    assert ran.code == 0, ran.err
    assert f"Weights of {tmp_path / 'small'}: stored as int8 in groups of 16 by gptq.\n" in ran.out
    assert "ratio: " in ran.out
    assert "Protocol: " in ran.out
    assert "float32, tokenizer of" in ran.out
    rows = json.loads(prunus(*asked, "--json").out)
    assert [", weights stored as int8 in groups of 16 by gptq, " in row["protocol"] for row in rows] == [True, False]
    several = prunus("evaluate", tmp_path / "small", "--dense", pruned, "--corpora", text_file, "--length", 32, "--tokens", 320, "--quiet")
    assert several.code == 0, several.err
    assert f"Weights of {tmp_path / 'small'}: stored as int8 in groups of 16 by gptq.\n" in several.out
    assert "divergence from dense" in several.out


def test_rounding_to_nearest_reads_no_text(prunus: Prunus, pruned: Path, tmp_path: Path) -> None:
    ran = prunus("quantise", pruned, "--out", tmp_path / "small", "--group", 16, "--method", "rtn", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert json.loads((tmp_path / "small" / "quantisation.json").read_text())["weights"] == "int4 in groups of 16 by rtn"


@pytest.mark.parametrize(("flags", "reason"), [
    (["--bits", 3], "bits = 3: expected 4 or 8"),
    (["--group", 20], "has 32 inputs, which such groups do not fill. Use 32 or 16, or 0 for whole rows"),
    (["--group", -1], "group = -1: expected at least 1 input"),
    (["--method", "gptq,damping=-1"], "damping = -1"),
    (["--method", "gptk"], "Did you mean 'gptq'?"),
    (["--method", "rtn"], "say nothing with --method rtn, which reads no text"),
    (["--calibration", "nowhere.txt"], "corpus 'nowhere.txt': no such file"),
    (["--samples", 0], "expected at least 1 sequence"),
])
def test_what_cannot_be_done_is_refused_in_a_line_and_nothing_is_written(prunus: Prunus, words: list[Any], flags: list[Any], reason: str,
                                                                         tmp_path: Path) -> None:
    ran = prunus(*words, *flags, "--quiet")
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert reason in ran.err
    assert not (tmp_path / "small").exists()


def test_a_folder_in_use_and_a_model_that_is_quantised_already_are_refused(prunus: Prunus, words: list[Any], tmp_path: Path) -> None:
    assert prunus(*words, "--quiet").code == 0
    assert "exists and is not empty" in prunus(*words, "--quiet").err
    again = prunus("quantise", tmp_path / "small", "--out", tmp_path / "smaller", "--group", 16, "--method", "rtn", "--quiet")
    assert again.code == 2
    assert "its weights are quantised already (int4 in groups of 16 by gptq)" in again.err
    assert not (tmp_path / "smaller").exists()
