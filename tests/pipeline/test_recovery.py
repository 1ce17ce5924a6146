"""Every recovery in a run: what it tells of itself, and what it leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prunus.allocation.influence import Influence
from prunus.budget import Budget
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.wanda import Wanda
from prunus.errors import RecipeError
from prunus.granularity import NM, Columns, Granularity, Unstructured
from prunus.lookup import find, names
from prunus.pipeline import Progress, prune
from prunus.recipe import Recipe
from prunus.recovery.patch import Patch
from prunus.recovery.reconstruct import Reconstruct
from prunus.solvers.mask import Mask

from ..tiny import tiny_model, tiny_tokenizer

RECOVERIES = names("recovery")
STAGES: dict[str, dict[str, Any]] = {
    "linear": {"budget": Budget(0.5), "solver": Mask(Magnitude())},
    "channel": {"sites": ("channel",), "budget": Budget(0.6), "solver": Mask(Magnitude())},
    "sublayer": {"sites": ("sublayer",), "budget": Budget(0.6), "allocation": Influence(), "skip": ("model.layers.3*",)}}
Recipes = Callable[..., Recipe]


def asked(name: str) -> Any:
    """With the least squares first, where that is a choice."""
    kind = find("recovery", name)
    return kind(**{"reconstruct": {"first": True}, "distill": {"first": Patch()}}.get(name, {}))


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


@pytest.mark.parametrize("granularity", [Unstructured(), NM(2, 4), Columns(4)], ids=str)
@pytest.mark.parametrize("name", RECOVERIES)
def test_after_any_mask_a_recovery_changes_what_is_kept_and_nothing_else(name: str, granularity: Granularity, recipe_for: Recipes) -> None:
    models = [tiny_model() for _ in range(2)]
    for model, recovery in zip(models, (None, asked(name)), strict=True):
        prune(model, recipe_for(recovery=recovery, samples=24, granularity=granularity, budget=Budget(0.5), solver=Mask(Magnitude())),
              tokenizer=tiny_tokenizer())
    matrices = [(before, after) for (path, before), after in zip(models[0].named_parameters(), models[1].parameters(), strict=True)
                if path.endswith("proj.weight")]
    assert all(torch.equal(before == 0, after == 0) for before, after in matrices)
    assert any(not torch.equal(before, after) for before, after in matrices)


def test_a_block_is_repaired_before_the_next_one_is_pruned_for_what_it_then_reads(recipe_for: Recipes,
                                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[float]] = []
    saliency = Wanda.saliency

    def recorded(self: Wanda, weight: torch.Tensor, stats: Any) -> torch.Tensor:
        read.append(stats.rms().tolist())
        return saliency(self, weight, stats)

    monkeypatch.setattr(Wanda, "saliency", recorded)
    told: list[str] = []
    for recovery in (None, Reconstruct(epochs=2, rate=0.03)):
        prune(tiny_model(), recipe_for(recovery=recovery, samples=24, budget=Budget(0.5), solver=Mask(Wanda())), tokenizer=tiny_tokenizer(),
              watch=lambda progress: told.append(progress.record.site if progress.record else progress.phase))
    assert told.index("repairing blocks") == len(told) - 9  # seven matrices of the second block, and its own repair
    plain, repaired = read[: len(read) // 2], read[len(read) // 2 :]
    assert plain[0] == pytest.approx(repaired[0])
    first = len(plain) // 2  # of the second block
    assert plain[first] != pytest.approx(repaired[first], rel=1e-3)


def test_blocks_that_are_skipped_are_not_repaired(recipe_for: Recipes) -> None:
    before, model = tiny_model(num_hidden_layers=3), tiny_model(num_hidden_layers=3)
    prune(model, recipe_for(recovery=Reconstruct(epochs=1), samples=24, skip=("model.layers.1.*",)), tokenizer=tiny_tokenizer())
    pairs = zip(before.model.layers, model.model.layers, strict=True)
    same = [all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True)) for one, other in pairs]
    assert same == [False, True, False]


def test_training_that_diverges_is_in_the_report(recipe_for: Recipes) -> None:
    report = prune(tiny_model(), recipe_for(recovery=Reconstruct(epochs=1, rate=1e4), samples=24), tokenizer=tiny_tokenizer()).report
    assert sum("training diverged" in note for note in report.notes) == 2
