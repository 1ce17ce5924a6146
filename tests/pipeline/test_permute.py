"""Inputs of matrices take another order before n:m: the dense model computes what it did, and the pattern keeps more."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.placement import Placement
from prunus.calibration.sample import Calibration
from prunus.calibration.stream import View, stream
from prunus.criteria.magnitude import Magnitude
from prunus.errors import RecipeError
from prunus.export.huggingface import save
from prunus.granularity import NM, Tile, keep_mask
from prunus.matrices import movable
from prunus.pipeline import allocate, prune
from prunus.recipe import Recipe, Stage, build, plain
from prunus.recovery.reconstruct import Reconstruct
from prunus.reordering import put_in_order
from prunus.result import Pruned
from prunus.sites import ChannelSite, LinearSite
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.surgery.write import read_weight, reorder

from ..tiny import FAMILIES, channels_of, tiny_model, tiny_tokenizer, uneven
from .test_resume import assert_same, interrupted_and_resumed

PERMUTED = NM(2, 4, permute=True)
TOKENS = torch.randint(0, 256, (6, 24), generator=torch.Generator().manual_seed(3))
MODELS = [*((family, {}) for family in FAMILIES), ("llama", {"num_key_value_heads": 1}), ("qwen2", {"num_key_value_heads": 4}),
           ("llama", {"hidden_size": 64})]


@torch.no_grad()
def answer(model: Any) -> torch.Tensor:
    cached = {"use_cache": False} if model.can_generate() else {}
    return model(input_ids=TOKENS, **cached).logits


def recipe_with(text_file: Path, granularity: NM = PERMUTED, **stage: Any) -> Recipe:
    return Recipe((Stage(budget=Budget(0.5), granularity=granularity, **stage),), Calibration(str(text_file), samples=4, length=32), (), ())


def run(recipe: Recipe, model: Any = None, **settings: Any) -> Pruned:
    return prune(tiny_model() if model is None else model, recipe, tokenizer=tiny_tokenizer(), **settings)


def looked_at(model: Any, sites: list[LinearSite]) -> list[View]:
    return [view for group in stream(model, describe(model), sites, TOKENS, "power", Placement()) for view in group]


@pytest.mark.parametrize(("family", "changes"), MODELS, ids=str)
def test_the_model_computes_what_it_did_and_its_matrices_keep_what_was_said(family: str, changes: dict[str, Any]) -> None:
    model = tiny_model(family, **changes)
    before, anatomy = answer(model), describe(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    moving = movable(anatomy, anatomy.sites("linear"), PERMUTED)
    consumers = {site.consumer for site in anatomy.sites("channel") if isinstance(site, ChannelSite)}
    assert {matrix.name for matrix in moving} == consumers
    said: dict[str, Any] = {}
    told: list[tuple[int, int]] = []

    def measured(measure: Any) -> dict[str, Any]:
        said.update(measure())
        return said

    put_in_order(model, moving, PERMUTED, lambda: stream(model, anatomy, list(moving), TOKENS, "power", Placement()), measured,
                 lambda done, of: told.append((done, of)))
    assert told == [(place, len(moving)) for place in range(1, len(moving) + 1)]
    assert torch.allclose(answer(model), before, atol=1e-5)
    assert all(not torch.equal(model.state_dict()[f"{name}.weight"], weights[f"{name}.weight"]) for name in consumers)
    for view in looked_at(model, list(moving)):
        saliency = read_weight(view.module).square() * view.stats.power
        kept = float(saliency[keep_mask(saliency, 0.5, NM(2, 4))].sum() / saliency.sum())
        assert kept == pytest.approx(said[view.site.name]["after"], rel=1e-4)
        assert said[view.site.name]["before"] < said[view.site.name]["after"] < 1


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_have_lost_channels_compute_what_they_did(family: str) -> None:
    """Rows of fused matrices lie elsewhere then."""
    model = uneven(family)
    before = answer(model)
    for place, site in enumerate(channels_of(model)):
        parts, channels, _ = site.parts
        order = torch.rand(parts, channels, generator=torch.Generator().manual_seed(place)).argsort(1)
        reorder(model, site, order)
    assert torch.allclose(answer(model), before, atol=1e-5)


def test_the_report_says_which_and_how_much_and_the_pattern_holds(text_file: Path) -> None:
    pruned = run(recipe_with(text_file))
    (note,) = [note for note in pruned.report.notes if "another order" in note]
    assert note.startswith("Inputs of 4 matrices (self_attn.o_proj, mlp.down_proj) took another order before 2:4 was chosen: it can keep ")
    for site in describe(pruned.model).sites("linear"):
        assert ((read_weight(pruned.model.get_submodule(site.name)) != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()
    assert not any("another order" in note for note in run(recipe_with(text_file, NM(2, 4))).report.notes)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_errors_of_the_matrices_that_took_another_order_are_smaller(family: str, text_file: Path) -> None:
    """Of MLPs whose channels grow from one to the next, so that neighbours compete."""
    def errors(granularity: NM) -> dict[str, float]:
        model = tiny_model(family)
        for site in describe(model).sites("channel"):
            assert isinstance(site, ChannelSite)
            weight: Any = model.get_submodule(site.consumer).weight
            scale = torch.linspace(0.05, 2, max(weight.shape) if site.width == 1 else 32)
            weight.data *= scale[:, None] if family == "gpt2" else scale
        recipe = recipe_with(text_file, granularity, solver=ALPS(), skip=tuple(f"*{name}" for name in ("q_proj", "k_proj")))
        return {record.site: record.error or 0.0 for record in run(recipe, model).report.sites}

    as_they_are, moved = errors(NM(2, 4)), errors(PERMUTED)
    last = {"llama": "down_proj", "opt": "fc2", "gpt2": "mlp.c_proj"}[family]
    names = [name for name in moved if name.endswith(last)]
    assert sum(moved[name] for name in names) < 0.95 * sum(as_they_are[name] for name in names)


def test_a_matrix_that_is_left_alone_keeps_its_order(text_file: Path) -> None:
    model, dense = tiny_model(), tiny_model()
    run(recipe_with(text_file, skip=("*down_proj", "*up_proj", "*gate_proj")), model)
    for name, value in dense.state_dict().items():
        assert not ("mlp" in name and not torch.equal(model.state_dict()[name], value)), name


@pytest.mark.parametrize(("skip", "changes"), [
    (("*o_proj", "*down_proj"), {}), (("*down_proj",), {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4}),
], ids=["no such matrix", "heads of six"])
def test_it_is_refused_where_no_matrix_can_take_another_order(skip: tuple[str, ...], changes: dict[str, Any], text_file: Path) -> None:
    model = tiny_model(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError, match=r"granularity 2:4,permute=true: none of the \d+ chosen sites, .* in another order") as caught:
        run(recipe_with(text_file, skip=skip), model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tiles_of_an_earlier_stage_refuse_it() -> None:
    with pytest.raises(RecipeError, match="would move rows of the tiles"):
        Recipe((Stage(granularity=Tile(4, 4)), Stage(granularity=PERMUTED)))


@pytest.mark.parametrize("stage", [{"solver": ALPS()}, {"solver": Mask(Magnitude())}, {"skip": ("*gate_proj",)},
                                   {"recovery": Reconstruct(epochs=1)}], ids=["alps", "magnitude", "skip", "recovery"])
def test_an_interrupted_run_goes_on_to_the_same_model(stage: dict[str, Any], text_file: Path, tmp_path: Path) -> None:
    recipe = recipe_with(text_file, **stage)
    found = interrupted_and_resumed(recipe, tmp_path / "run", "model.layers.1.mlp.up_proj", lambda: tiny_model(num_hidden_layers=3))
    assert_same(found, run(recipe, tiny_model(num_hidden_layers=3)))


def test_shares_are_decided_without_moving_anything(text_file: Path) -> None:
    model, dense = tiny_model(), tiny_model()
    allocate(model, recipe_with(text_file), tokenizer=tiny_tokenizer())
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_saved_model_computes_the_same(text_file: Path, tmp_path: Path) -> None:
    pruned = run(recipe_with(text_file), tiny_model("opt"))
    save(pruned, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(answer(again.eval()), answer(pruned.model))


def test_recipes_say_it_in_words_and_as_a_table() -> None:
    for data in ("2:4,permute=true", {"name": "nm", "n": 2, "m": 4, "permute": True}):
        stage = build(Stage, {"granularity": data}, "stage")
        assert stage.granularity == PERMUTED
        assert build(Stage, plain(stage), "stage") == stage
    assert build(Stage, {"granularity": "2:4,permute=false"}, "stage").granularity == NM(2, 4)
    with pytest.raises(RecipeError, match=r"expected .*n:m,permute=true"):
        build(Stage, {"granularity": "2:4,permuted=true"}, "stage")
