"""Every recovery in a run: what it tells of itself, and what it leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prunus.allocation.influence import Influence
from prunus.budget import Budget
from prunus.criteria.magnitude import Magnitude
from prunus.errors import RecipeError
from prunus.lookup import find, names
from prunus.pipeline import Progress, prune
from prunus.recipe import Recipe
from prunus.solvers.mask import Mask

from ..tiny import tiny_model, tiny_tokenizer

RECOVERIES = names("recovery")
STAGES: dict[str, dict[str, Any]] = {
    "channel": {"sites": ("channel",), "budget": Budget(0.6), "solver": Mask(Magnitude())},
    "sublayer": {"sites": ("sublayer",), "budget": Budget(0.6), "allocation": Influence(), "skip": ("model.layers.3*",)}}
Recipes = Callable[..., Recipe]


def asked(name: str) -> Any:
    """With the least squares first, where that is a choice."""
    kind = find("recovery", name)
    return kind(first=True) if "first" in kind.__dataclass_fields__ else kind()


@pytest.mark.parametrize("sites", STAGES)
@pytest.mark.parametrize("name", RECOVERIES)
def test_a_recovery_changes_what_stays_says_how_far_it_is_and_counts_its_seconds_apart(name: str, sites: str, recipe_for: Recipes) -> None:
    models = [tiny_model(num_hidden_layers=4) for _ in range(2)]
    told: list[Progress] = []
    for model, recovery in zip(models, (None, asked(name)), strict=True):
        recipe = recipe_for(recovery=recovery, samples=24, **STAGES[sites])
        report = prune(model, recipe, tokenizer=tiny_tokenizer(), watch=told.append).report
    plain, repaired = ({key: tuple(value.shape) for key, value in model.state_dict().items()} for model in models)
    assert plain == repaired
    assert any(not torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert report.seconds["repairing"] > 0
    phases = [progress for progress in told if progress.phase in ("repairing blocks", "training what is kept")]
    assert phases[-1].done == phases[-1].total
    assert {progress.phase for progress in phases} == {"repairing blocks", *(["training what is kept"] if name == "distill" else [])}


@pytest.mark.parametrize("name", RECOVERIES)
def test_families_that_norm_what_is_added_are_refused_before_anything_is_done(name: str, recipe_for: Recipes) -> None:
    model = tiny_model("gemma2")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(RecipeError, match="normed or scaled before it is added"):
        prune(model, recipe_for(recovery=asked(name), **STAGES["channel"]), tokenizer=tiny_tokenizer())
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
