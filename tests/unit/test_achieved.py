"""Sparsity is counted in the weights, of a model and of a folder, against the dense model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunus.achieved import counted, of_folder, sparsity_of
from prunus.allocation.influence import Influence
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.criteria.magnitude import Magnitude
from prunus.errors import ComparisonError
from prunus.export.huggingface import save
from prunus.guards import shortfall
from prunus.pipeline import prune
from prunus.recipe import Recipe
from prunus.recovery.patch import Patch
from prunus.result import SiteRecord
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.surgery.cut import skip

from ..tiny import tiny_model, tiny_tokenizer

Recipes = Callable[..., Recipe]


def by_hand(model: Any) -> tuple[int, int]:
    weights = [model.get_submodule(site.name).weight for site in describe(model).sites("linear")]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("stage", [{"budget": Budget(0.4), "solver": Mask(Magnitude())},
                                   {"sites": ("channel",), "budget": Budget(0.5), "solver": Refit()},
                                   {"sites": ("sublayer",), "budget": Budget(0.7), "recovery": Patch()}],
                         ids=["zeros", "channels", "branches"])
def test_a_saved_folder_has_the_zeros_and_gaps_that_the_report_counted(stage: dict[str, Any], recipe_for: Recipes, tmp_path: Path) -> None:
    settings = {**stage, "allocation": Influence()} if stage.get("sites") == ("sublayer",) else stage
    result = prune(tiny_model(), recipe_for(**settings), tokenizer=tiny_tokenizer())
    save(result, tmp_path / "out")
    dense = describe(tiny_model())
    found = of_folder(tmp_path / "out", dense)
    assert found == result.report.matrices
    (zeros, left), (_, whole) = by_hand(result.model), by_hand(tiny_model())
    assert sum(matrix.zeros for matrix in found) == zeros
    assert sum(matrix.gone for matrix in found) == whole - left
    assert sum(matrix.weights for matrix in found) == whole
    assert result.report.sparsity == sparsity_of(found) == (zeros + whole - left) / whole
    assert [matrix.name for matrix in found] == [site.name for site in dense.sites("linear")]


def test_blocks_that_are_gone_are_one_line_as_the_others_have_moved_up() -> None:
    dense, model = describe(tiny_model(num_hidden_layers=3)), tiny_model(num_hidden_layers=3)
    left = skip(model, dense, ["model.layers.1.self_attn", "model.layers.1.mlp", "model.layers.2.mlp"])
    found = counted(model, left, dense)
    assert len(left.blocks) == 2
    block = sum(site.size for site in dense.sites("linear")) // 3
    mlp = sum(site.size for site in dense.sites("linear") if site.block == 0 and "mlp" in site.name)
    assert found[-1].gone == found[-1].weights == block + mlp
    assert sparsity_of(found) == pytest.approx((block + mlp) / (3 * block))


def test_a_model_whose_blocks_differ_already_is_counted_to_the_weight(recipe_for: Recipes) -> None:
    """Channels of all blocks but the first are gone; now a whole block goes, or more channels."""
    def shaped() -> Any:
        model = tiny_model(num_hidden_layers=3)
        prune(model, recipe_for(sites=("channel",), budget=Budget(0.5), solver=Refit(), skip=("model.layers.0.*",)),
              tokenizer=tiny_tokenizer())
        return model

    model, dense = shaped(), describe(shaped())
    whole = sum(site.size for site in dense.sites("linear"))
    left = skip(model, dense, ["model.layers.1.self_attn", "model.layers.1.mlp"])
    found = counted(model, left, dense)
    assert sum(matrix.weights for matrix in found) == whole
    assert found[-1].gone == sum(site.size for site in dense.sites("linear") if site.block == 1)
    again = prune(shaped(), recipe_for(sites=("channel",), budget=Budget(0.5), solver=Refit()), tokenizer=tiny_tokenizer())
    assert again.report.sparsity == 1 - by_hand(again.model)[1] / whole > 0.4


@pytest.mark.parametrize("changes", [{"intermediate_size": 24}, {"num_hidden_layers": 1}], ids=str)
def test_a_model_that_was_not_pruned_from_the_dense_one_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ComparisonError, match="Name the model that this one was pruned from"):
        counted(tiny_model(), describe(tiny_model()), describe(tiny_model(**changes)))


def test_matrices_with_fewer_zeros_than_were_asked_for_are_told_with_the_worst_of_them() -> None:
    model = tiny_model()
    anatomy = describe(model)
    first, second = (site.name for site in anatomy.sites("linear")[:2])
    model.get_submodule(first).weight.data[: 16] = 0  # half of 32 rows
    model.get_submodule(second).weight.data[: 4] = 0  # a quarter of 16
    records = [SiteRecord(name, 0.5, 0.5, None, 0.0) for name in (first, second)]
    said, = shortfall(records, counted(model, anatomy, anatomy))
    assert said.startswith("In 1 of 14 matrices")
    assert f"{second}: 25.00% counted, 50.00% asked" in said
    assert shortfall(records[:1], counted(model, anatomy, anatomy)) == ()
