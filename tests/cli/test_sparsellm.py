"""SparseLLM from the command line and from a recipe's file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from .conftest import Ran

Prunus = Callable[..., Ran]


def share_of_zeros(folder: Path) -> float:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    weights = [value for name, value in model.named_parameters() if value.dim() == 2 and "embed" not in name and "lm_head" not in name]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_flags_prune_a_model_with_it(family: str, prunus: Prunus, quick: list[Any], checkpoint: Any, tmp_path: Path) -> None:
    quick[1] = checkpoint(family, name=family)
    ran = prunus(*quick, "--solver", "sparsellm,inside=wanda,rounds=1", "--sparsity", "0.7")
    assert ran.code == 0, ran.err
    assert share_of_zeros(tmp_path / "out") == pytest.approx(0.7, abs=0.02)


def test_a_recipe_names_it_and_its_solver_inside(prunus: Prunus, checkpoint: Any, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f"""
metrics = []
prompts = []

[[stage]]
granularity = "2:4"
solver = {{ name = "sparsellm", inside = {{ name = "alps", iterations = 20 }} }}

[calibration]
corpus = "{text_file}"
samples = 4
length = 32
""")
    ran = prunus("prune", checkpoint(), "--recipe", tmp_path / "recipe.toml", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert share_of_zeros(tmp_path / "out") == pytest.approx(0.5, abs=1e-3)


def test_whole_channels_and_a_solver_that_cannot_be_inside_are_one_line(prunus: Prunus, quick: list[Any]) -> None:
    for words in (["--sites", "channel", "--solver", "sparsellm"], ["--solver", "sparsellm,inside=sparsellm"]):
        ran = prunus(*quick, *words)
        assert ran.code == 2
        assert len(ran.err.strip().splitlines()) == 1
