"""What a run asks an allocator, and tells it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prunus.allocation.absorption import Absorption
from prunus.allocation.dlp import DLP
from prunus.allocation.erk import ERK
from prunus.allocation.file import File
from prunus.allocation.fisher import Fisher
from prunus.allocation.owl import OWL
from prunus.allocation.reconstruction import Reconstruction
from prunus.allocation.sensitivity import Sensitivity
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.criteria.magnitude import Magnitude
from prunus.errors import RecipeError
from prunus.recipe import Recipe
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT

from ..tiny import tiny_model
from .test_prune import assert_untouched, pruned

Recipes = Callable[..., Recipe]


@pytest.mark.parametrize("allocation", [OWL(), DLP(per="sublayer"), Reconstruction(per="matrix")], ids=["owl", "dlp", "reconstruction"])
@pytest.mark.parametrize("sites", ["linear", "channel"])
def test_an_allocator_sees_every_site_of_the_dense_model_before_any_is_pruned(
    sites: Any, allocation: Any, recipe_for: Recipes, monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, anatomy = tiny_model(), describe(tiny_model())
    measured: dict[str, Tensor] = {}
    real = type(allocation).measure

    def watched(self: Any, site: Any, weight: Tensor, stats: Any, loss: Any) -> Any:
        assert_untouched(model)
        measured[site.name] = stats.power
        return real(self, site, weight, stats, loss)

    monkeypatch.setattr(type(allocation), "measure", watched)
    budget = Budget(0.6 if sites == "channel" else 0.4)
    result = pruned(model, recipe_for(sites=(sites,), allocation=allocation, solver=SparseGPT(), budget=budget))
    assert list(measured) == [site.name for site in anatomy.sites(sites)]
    (shares,) = result.report.allocation
    assert len(set(shares.values())) > 1
    assert result.report.sparsity >= 0.3 if sites == "channel" else result.report.sparsity == pytest.approx(0.6, abs=0.002)
    assert {record.site: record.asked for record in result.report.sites} == shares


def test_measuring_for_an_allocator_is_a_stage_of_the_work_with_seconds_of_its_own(recipe_for: Recipes) -> None:
    assert pruned(tiny_model(), recipe_for(allocation=OWL(), solver=Mask(Magnitude()))).report.seconds["allocating"] > 0


@pytest.mark.parametrize("allocation", [Sensitivity(sequences=2), Fisher(sequences=2), Absorption(ERK(), sequences=2)])
def test_an_allocator_that_asks_for_the_loss_is_told_of_every_site_and_the_model_is_not_changed(
    allocation: Any, recipe_for: Recipes, monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = tiny_model(), {}
    real = type(allocation).measure

    def watched(self: Any, site: Any, weight: Tensor, stats: Any, loss: Any) -> Any:
        assert_untouched(model)
        seen[site.name] = loss
        return real(self, site, weight, stats, loss)

    monkeypatch.setattr(type(allocation), "measure", watched)
    result = pruned(model, recipe_for(allocation=allocation, solver=SparseGPT(), budget=Budget(0.4)))
    assert list(seen) == [site.name for site in describe(model).sites("linear")]
    assert all(loss.output > 0 and (loss.trace is not None) == isinstance(allocation, Sensitivity) for loss in seen.values())
    assert len(set(result.report.allocation[0].values())) > 1
    assert result.report.sparsity == pytest.approx(0.6, abs=0.002)


def test_sensitivity_to_the_loss_of_a_model_that_predicts_nothing_is_refused(recipe_for: Recipes) -> None:
    with pytest.raises(RecipeError, match="allocation: sensitivity to the loss is measured by the next token"):
        pruned(tiny_model("distilbert"), replace(recipe_for(allocation=Fisher()), metrics=(), prompts=()))


def test_finished_blocks_with_other_shares_are_not_mixed_with_this_run_s(recipe_for: Recipes, tmp_path: Path) -> None:
    shares = tmp_path / "shares.json"
    names = [site.name for site in describe(tiny_model()).sites("linear")]
    recipe = recipe_for(allocation=File(str(shares)), budget=Budget(0.5))
    shares.write_text(json.dumps(dict.fromkeys(names, 0.5)))
    pruned(tiny_model(), recipe, resume=tmp_path / "run")
    shares.write_text(json.dumps(dict.fromkeys(names, 0.6)))
    with pytest.raises(RecipeError, match="finished blocks have other shares than this run's"):
        pruned(tiny_model(), recipe, resume=tmp_path / "run")
