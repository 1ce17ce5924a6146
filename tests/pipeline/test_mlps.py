"""MLPs of models, solved as a whole: every family, every target, and the same after an interruption."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.target import Target
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.wanda import Wanda
from prunus.errors import RecipeError
from prunus.granularity import NM
from prunus.pipeline import Progress, prune
from prunus.recipe import Recipe, Stage
from prunus.recovery.reconstruct import Reconstruct
from prunus.result import Pruned
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT
from prunus.solvers.sparsellm import SparseLLM

from ..tiny import FAMILIES, branches_of, tiny_model, tiny_tokenizer

SPARSE = Budget(0.3)


def pruned(recipe: Recipe, family: str = "llama", **settings: Any) -> Pruned:
    return prune(tiny_model(family), recipe, tokenizer=tiny_tokenizer(), **settings)


def first_mlp(model: Any) -> Any:
    return next(branch for branch in branches_of(model) if branch.kind == "mlp")


def masks(model: Any) -> dict[str, Tensor]:
    return {site.name: model.get_parameter(f"{site.name}.weight") != 0 for site in describe(model).sites("linear")}


@torch.no_grad()
def passed(recipe: Recipe, model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the first MLP's last matrix gives, and what the first of its matrices reads."""
    anatomy = describe(model)
    mlp = first_mlp(model)
    first = next(site.name for site in anatomy.sites("linear") if site.branch == mlp.name)
    seen: dict[str, Tensor] = {}
    handles = [model.get_submodule(mlp.output).register_forward_hook(lambda _, __, gives: seen.update(gives=gives)),
               model.get_submodule(first).register_forward_pre_hook(lambda _, given: seen.update(reads=given[0]))]
    model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen["gives"].flatten(0, -2).double(), seen["reads"].flatten(0, -2).double()


@torch.no_grad()
def given_by_dense(family: str, x: Tensor) -> Tensor:
    """The dense first MLP's output on any inputs, in float64, its gate and product written out."""
    layer = tiny_model(family)
    if family == "opt":
        block = layer.model.decoder.layers[0].double()
        return block.fc2(block.fc1(x).clamp(min=0))
    mlp = layer.model.layers[0].mlp.double()
    gate = mlp.gate_proj(x)
    return mlp.down_proj(gate * torch.sigmoid(gate) * mlp.up_proj(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_mlps_are_solved_as_a_whole(family: str, recipe_for: Any) -> None:
    model, alone = (pruned(recipe_for(solver=solver, budget=SPARSE), family) for solver in (SparseLLM(), SparseGPT()))
    assert model.report.sparsity == pytest.approx(0.7, abs=2e-3)
    mlp = first_mlp(model.model)
    changed = [site.name for site in describe(model.model).sites("linear") if site.branch == mlp.name]
    for site in describe(model.model).sites("linear"):
        if site.block == 0:
            ours, theirs = (found.model.get_parameter(f"{site.name}.weight").data for found in (model, alone))
            same = float((ours - theirs).norm()) < 1e-3 * float(theirs.norm())  # products are summed in another order
            assert same == (site.name not in changed), site.name


@pytest.mark.parametrize("asymmetry", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_error_in_the_report_is_that_of_the_mlp_s_output_and_less_than_alone(family: str, asymmetry: float, recipe_for: Any) -> None:
    """Of what the target says: the dense MLP on what the pruned model gives it, on what the dense one gives it, or between."""
    errors = {}
    for solver in (SparseLLM(Mask(Wanda())), Mask(Wanda())):
        recipe = recipe_for(solver=solver, budget=SPARSE, target=Target(asymmetry=asymmetry))
        found = pruned(recipe, family)
        tokens = recipe.calibration.tokens(tiny_tokenizer(), tiny_model(family), recipe.seed)
        gives, reads = passed(recipe, found.model, tokens)
        _, would_read = passed(recipe, tiny_model(family), tokens)
        aim = given_by_dense(family, reads + asymmetry * (would_read - reads))
        errors[solver] = float((aim - gives).square().sum() / aim.square().sum())
        if isinstance(solver, SparseLLM):
            (record,) = (record for record in found.report.sites if record.site == first_mlp(found.model).output)
            assert record.error == pytest.approx(errors[solver], rel=1e-3)
    whole, alone = errors.values()
    assert whole < 0.9 * alone


@pytest.mark.parametrize("inside", [SparseGPT(), ALPS(), Mask(Magnitude())], ids=["sparsegpt", "alps", "magnitude"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_n_of_m_is_kept_in_every_matrix(family: str, inside: Any, recipe_for: Any) -> None:
    found = pruned(recipe_for(solver=SparseLLM(inside), granularity=NM(2, 4)), family)
    for name, mask in masks(found.model).items():
        assert int(mask.view(-1, 4).sum(1).max()) <= 2, name
    assert found.report.sparsity == pytest.approx(0.5, abs=1e-3)


def test_other_true_orders_dtypes_and_recoveries_go_with_it(recipe_for: Any) -> None:
    recipe = recipe_for(solver=SparseLLM(), budget=SPARSE, target=Target(true_sequential=False), recovery=Reconstruct(epochs=1))
    assert pruned(recipe).report.sparsity == pytest.approx(0.7, abs=2e-3)
    half = prune(tiny_model(dtype=torch.bfloat16), recipe_for(solver=SparseLLM(), budget=SPARSE), tokenizer=tiny_tokenizer())
    assert half.report.sparsity == pytest.approx(0.7, abs=2e-3)
    assert all(bool(torch.isfinite(value).all()) for value in half.model.state_dict().values())


class Stop(Exception):
    """What interrupts a run."""


@pytest.mark.parametrize("target", [Target(), Target(asymmetry=1.0)], ids=["own inputs", "dense inputs"])
def test_an_interrupted_run_goes_on_to_the_same_end(target: Target, recipe_for: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_for(solver=SparseLLM(), budget=SPARSE, target=target)

    def stop(progress: Progress) -> None:
        if progress.record is not None and progress.record.site.startswith("model.layers.1.mlp"):
            raise Stop

    with pytest.raises(Stop):
        pruned(recipe, resume=tmp_path / "run", watch=stop)
    assert len(list((tmp_path / "run").glob("stage-*"))) == 1
    resumed, whole = pruned(recipe, resume=tmp_path / "run"), pruned(recipe)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    ours, theirs = ([(record.site, record.error) for record in run.report.sites] for run in (resumed, whole))
    assert ours == theirs


def test_an_mlp_of_which_a_matrix_is_skipped_is_solved_matrix_by_matrix(recipe_for: Any) -> None:
    recipe = recipe_for(solver=SparseLLM(), budget=SPARSE, skip=("model.layers.1.mlp.up_proj",))
    alone = recipe_for(solver=SparseGPT(), budget=SPARSE, skip=("model.layers.1.mlp.up_proj",))
    found, theirs = masks(pruned(recipe).model), masks(pruned(alone).model)
    assert bool(found["model.layers.1.mlp.up_proj"].all())
    assert not torch.equal(found["model.layers.0.mlp.down_proj"], theirs["model.layers.0.mlp.down_proj"])


def test_where_no_mlp_is_whole_it_is_refused(recipe_for: Any) -> None:
    with pytest.raises(RecipeError, match="there is none of which the stage prunes every matrix"):
        pruned(recipe_for(solver=SparseLLM(), skip=("*.down_proj",)))


def test_an_mlp_of_another_form_is_refused_before_anything_is_pruned(recipe_for: Any) -> None:
    model = tiny_model()
    for layer in model.model.layers:  # a router in front of it, as in a mixture of experts
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: (given[0] * given[0].softmax(-1),))
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    with pytest.raises(RecipeError, match=r"does not read the activation of what model\.layers\.0\.mlp\.gate_proj gives"):
        prune(model, recipe_for(solver=SparseLLM()), tokenizer=tiny_tokenizer())
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, before)


def test_an_unknown_activation_weighted_tokens_and_whole_channels_are_refused(recipe_for: Any) -> None:
    model = tiny_model()
    model.config.hidden_act = "my own"
    with pytest.raises(RecipeError, match="activation is 'my own'"):
        prune(model, recipe_for(solver=SparseLLM()), tokenizer=tiny_tokenizer())
    with pytest.raises(RecipeError, match=r"target\.fisher: a solver of whole MLPs counts all tokens alike"):
        pruned(recipe_for(solver=SparseLLM(), target=Target(fisher=True)))
    with pytest.raises(RecipeError, match="solver SparseLLM cannot do columns"):
        Stage(sites=("channel",), solver=SparseLLM())
