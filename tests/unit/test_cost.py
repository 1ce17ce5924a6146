"""Every token that a model computes is counted once, in the stage that it is computed in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.sample import Calibration
from prunus.cost import metered
from prunus.criteria.magnitude import Magnitude
from prunus.environment import Clock
from prunus.evaluation.perplexity import Perplexity
from prunus.pipeline import prune
from prunus.recipe import Recipe
from prunus.search.plan import Search
from prunus.search.strategies.random import Random
from prunus.silence import silenced
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT

from ..tiny import CAUSAL, branches_of, tiny_model, tiny_tokenizer

Recipes = Callable[..., Recipe]


@pytest.mark.parametrize("family", CAUSAL)
def test_tokens_count_once_and_those_of_a_branch_that_is_passed_over_do_not(family: str) -> None:
    model, clock = tiny_model(family), Clock()
    tokens = torch.arange(60).view(3, 20)
    branches = branches_of(model)
    with metered(clock, "cpu") as meter, torch.no_grad():
        meter.follow(model, describe(model))
        with clock("dense"):
            model(input_ids=tokens)
        with clock("searching"), silenced(model, branches[:1]):
            model(input_ids=tokens)
    share = branches[0].size / sum(branch.size for branch in branches)
    assert meter.tokens == pytest.approx({"dense": 60, "searching": 60 * (1 - share)})
    model(input_ids=tokens)
    assert meter.tokens["dense"] == pytest.approx(60)


def test_calibration_evaluation_and_answers_count_in_their_stages(recipe_for: Recipes, text_file: Path, tmp_path: Path) -> None:
    """6 sequences of 32 tokens, all of it but the last MLP, whose outputs nobody needs; 4 windows of 32 before and after, and a prompt
    of 4 bytes that is answered with 32 tokens, the last of which is not read."""
    (tmp_path / "report.txt").write_text("words of its own that stand in no other text but this one, and are many. " * 40)
    metric = Perplexity(str(tmp_path / "report.txt"), length=32, tokens=128)
    report = prune(tiny_model(eos_token_id=None), recipe_for(solver=SparseGPT(), metrics=(metric,), prompts=("a b ",)),
                   tokenizer=tiny_tokenizer()).report
    tokens = report.cost.tokens
    mlp = branches_of(tiny_model())[-1].size / sum(branch.size for branch in branches_of(tiny_model()))
    first = branches_of(tiny_model())
    shares = sum(branch.size for branch in first[:2]) / sum(branch.size for branch in first)  # the block that shows its arguments
    assert tokens["pruning"] == pytest.approx(192 * (1 - mlp) + 4 * 32 * shares + 2 * 32 * shares, abs=1)
    assert tokens["dense"] == tokens["pruned"] == pytest.approx(128 + 4 + 31, abs=0.2)
    assert report.cost.measurements == 2
    assert report.cost.host_bytes > 50 * 2**20
    assert report.cost.device_bytes is None
    assert set(report.cost.seconds) >= {"preparing", "dense", "pruning", "solving", "pruned"}


def test_what_is_cut_counts_less_afterwards(recipe_for: Recipes, tmp_path: Path) -> None:
    """Half of the channels gone: the same text is about half of the work."""
    (tmp_path / "report.txt").write_text("words of its own that stand in no other text but this one, and are many. " * 40)
    metric = Perplexity(str(tmp_path / "report.txt"), length=32, tokens=128)
    cost = prune(tiny_model(), recipe_for(sites=("channel",), budget=Budget(0.5), solver=Refit(), metrics=(metric,)),
                 tokenizer=tiny_tokenizer()).report.cost
    assert cost.tokens["pruned"] == pytest.approx(cost.tokens["dense"] / 2, rel=0.05)


def test_the_looks_of_a_search_count(recipe_for: Recipes) -> None:
    search: Any = Search(Random(), evaluations=6.0, text=Calibration("self", samples=8, length=16))
    report = prune(tiny_model(), recipe_for(solver=Mask(Magnitude()), search=search), tokenizer=tiny_tokenizer()).report
    assert report.cost.looks == report.searches[0].spent >= 6
    assert report.cost.questions == report.searches[0].questions
    assert report.cost.tokens["searching"] > 6 * 16
    assert report.cost.tokens["preparing"] > 8 * 14  # the model writes the text itself


def test_a_model_that_was_pruned_counts_no_more(recipe_for: Recipes) -> None:
    model = prune(tiny_model(), recipe_for(), tokenizer=tiny_tokenizer()).model
    assert not [name for name, module in model.named_modules() if module._forward_hooks]
