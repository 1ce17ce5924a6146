"""Every recovery in a run: what it tells of itself, and what it leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prunus.allocation.influence import Influence
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.placement import Placement
from prunus.calibration.reselection import Candidate
from prunus.calibration.sample import Calibration
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.random import Random
from prunus.criteria.wanda import Wanda
from prunus.errors import RecipeError
from prunus.granularity import NM, Columns, Granularity, Tile, Unstructured
from prunus.lookup import find, names
from prunus.pipeline import Progress, prune
from prunus.recipe import Recipe, Stage
from prunus.recovery.distill import Distill
from prunus.recovery.patch import Patch
from prunus.recovery.reconstruct import Reconstruct
from prunus.solvers.mask import Mask
from prunus.traits import module_layout

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


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_blocks_that_have_lost_a_branch_are_repaired_too(family: str) -> None:
    model = tiny_model(family)
    stages = (Stage(sites=("sublayer",), budget=Budget(0.3), allocation=Influence()),
              Stage(budget=Budget(0.5), solver=Mask(Magnitude()), recovery=Reconstruct(first=True, epochs=1)))
    lost = len(describe(model).sites("sublayer"))
    prune(model, Recipe(stages, calibration=Calibration("builtin", samples=24, length=16), metrics=()), tokenizer=tiny_tokenizer())
    assert len(describe(model).sites("sublayer")) < lost


def test_blocks_that_are_skipped_are_not_repaired(recipe_for: Recipes) -> None:
    before, model = tiny_model(num_hidden_layers=3), tiny_model(num_hidden_layers=3)
    prune(model, recipe_for(recovery=Reconstruct(epochs=1), samples=24, skip=("model.layers.1.*",)), tokenizer=tiny_tokenizer())
    pairs = zip(before.model.layers, model.model.layers, strict=True)
    same = [all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True)) for one, other in pairs]
    assert same == [False, True, False]


@pytest.mark.parametrize("skip", [(), ("model.layers.2.*",)], ids=str)
def test_the_whole_model_is_trained_behind_blocks_that_were_repaired_in_turn(skip: tuple[str, ...], recipe_for: Recipes,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Towards the stream behind the last block of the dense model, whichever block was the last to be pruned."""
    given: list[torch.Tensor] = []
    conclude = Distill.conclude
    monkeypatch.setattr(Distill, "conclude", lambda self, *args: (given.append(args[3].clone()), conclude(self, *args))[1])
    monkeypatch.setattr(Distill, "recover", lambda *args: pytest.fail("the whole model is not repaired from its parameters"))
    models = [tiny_model(num_hidden_layers=3) for _ in range(3)]
    blocks = Reconstruct(epochs=1)
    for model, recovery in zip(models, (blocks, Distill(rate=0.02, first=blocks)), strict=False):
        prune(model, recipe_for(recovery=recovery, samples=24, skip=skip), tokenizer=tiny_tokenizer())
    alone, whole, dense = ({path: value.detach() for path, value in model.named_parameters()} for model in models)
    assert all(torch.equal(alone[path] == 0, whole[path] == 0) for path in alone)
    assert not torch.equal(alone["model.layers.0.mlp.up_proj.weight"], whole["model.layers.0.mlp.up_proj.weight"])
    seen: list[torch.Tensor] = []
    models[2].model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tokens = recipe_for(samples=24).calibration.read(tiny_tokenizer(), models[2], 0)
    with torch.no_grad():
        models[2](tokens)
    torch.testing.assert_close(given[0], seen[0], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(dense[path], whole[path]) for path in alone if "layers" not in path or "norm" in path)


def test_training_that_diverges_is_in_the_report(recipe_for: Recipes) -> None:
    report = prune(tiny_model(), recipe_for(recovery=Reconstruct(epochs=1, rate=1e4), samples=24), tokenizer=tiny_tokenizer()).report
    assert sum("training diverged" in note for note in report.notes) == 2


def kept_of(model: Any) -> dict[str, torch.Tensor]:
    """Of the matrices of a tiny model's blocks, as (out, in), what is not zero."""
    return {site.name: module_layout(model.get_submodule(site.name), model.get_submodule(site.name).weight.detach()) != 0
            for site in describe(model).sites("linear")}


@pytest.mark.parametrize("unit", ["block", "branch"])
@pytest.mark.parametrize(("granularity", "width"), [(Unstructured("matrix"), 0), (Unstructured("row"), -1), (NM(2, 4), 4)], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_masks_that_are_chosen_again_differ_and_keep_as_many(family: str, granularity: Granularity, width: int, unit: Any,
                                                            recipe_for: Recipes) -> None:
    models = [tiny_model(family) for _ in range(2)]
    for model, times in zip(models, (0, 3), strict=True):
        prune(model, recipe_for(recovery=Reconstruct(epochs=3, rate=0.03, unit=unit, reselect=times), samples=24, granularity=granularity,
                                budget=Budget(0.5), solver=Mask(Random())), tokenizer=tiny_tokenizer())
    fixed, chosen = (kept_of(model) for model in models)
    moved = 0
    for name, mask in fixed.items():
        rows = [kept.reshape(-1, width if width > 0 else kept.shape[1] if width else kept.numel()) for kept in (mask, chosen[name])]
        assert torch.equal(rows[0].sum(1), rows[1].sum(1)), name
        moved += int((chosen[name] & ~mask).sum())
    assert moved > 0


@pytest.mark.parametrize("pattern", ["0.6", "2:4"])
def test_a_block_under_a_random_mask_ends_nearer_to_the_dense_one_where_the_mask_is_chosen_again(pattern: str,
                                                                                                recipe_for: Recipes) -> None:
    """On other text than the run saw; the first block, as later ones read other streams."""
    text = torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(5))
    granularity, budget = (NM(2, 4), Budget(0.5)) if pattern == "2:4" else (Unstructured("matrix"), Budget(0.4))
    errors: list[float] = []
    with torch.no_grad():
        aim = tiny_model().model(input_ids=text, output_hidden_states=True).hidden_states[1]
        for times in (0, 8):
            model = tiny_model()
            prune(model, recipe_for(recovery=Reconstruct(rate=0.03, reselect=times), samples=48, granularity=granularity, budget=budget,
                                    solver=Mask(Random())), tokenizer=tiny_tokenizer())
            found = model.model(input_ids=text, output_hidden_states=True).hidden_states[1]
            errors.append(float(((found - aim).square().sum(-1) / aim.square().sum(-1)).mean()))
    assert errors[1] < 0.98 * errors[0]


def test_training_that_diverges_leaves_the_weights_and_the_masks_that_there_were(recipe_for: Recipes,
                                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[bool] = []
    choose = Candidate.choose
    monkeypatch.setattr(Candidate, "choose", lambda self, kept, share: (chosen.append(True), choose(self, kept, share))[1])
    models = [tiny_model() for _ in range(2)]
    for model, recovery in zip(models, (None, Reconstruct(epochs=2, rate=1e4, reselect=8)), strict=True):
        prune(model, recipe_for(recovery=recovery, samples=24, budget=Budget(0.5), solver=Mask(Magnitude())), tokenizer=tiny_tokenizer())
    assert chosen
    assert all(torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize("stage", [{"granularity": Tile(4, 4)}, {"sites": ("channel",)},
                                   {"sites": ("sublayer",), "allocation": Influence()}], ids=["tile", "channel", "sublayer"])
def test_masks_of_whole_groups_cannot_be_chosen_again(stage: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"reselect chooses again which single weights stay, and (tile:4x4|channel|sublayer) takes them"):
        Stage(**{"solver": Mask(Magnitude()), **stage}, recovery=Reconstruct(reselect=2))


def test_masks_are_chosen_again_only_where_a_block_is_repaired_as_it_is_pruned(recipe_for: Recipes) -> None:
    model, dense = tiny_model(), {"model.norm.weight": torch.ones(64)}
    for recovery in (Reconstruct(reselect=2), Distill(first=Reconstruct(reselect=2))):
        with pytest.raises(RecipeError, match="reselect = 2: masks are chosen again where a block is repaired as soon as it is pruned"):
            recovery.recover(model, describe(model), (), dense, torch.zeros(2, 8, dtype=torch.long), Placement(), 2)
    with pytest.raises(RecipeError, match="reselect = -1: expected 0 or more"):
        Reconstruct(reselect=-1)
