"""From a recipe to a pruned model and its report, in every family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.placement import Placement
from prunus.calibration.sample import Calibration
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.wanda import Wanda
from prunus.errors import CalibrationError, CorpusError, LoadError, PrunusError, RecipeError
from prunus.evaluation.perplexity import Perplexity
from prunus.export.huggingface import save
from prunus.granularity import NM, Columns, Granularity, Tile, Unstructured
from prunus.loading import load
from prunus.pipeline import Progress, prune
from prunus.recipe import Recipe, Stage
from prunus.result import Pruned
from prunus.sites import ChannelSite
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT
from prunus.surgery.write import read_weight

from ..tiny import CAUSAL, FAMILIES, tiny_model, tiny_tokenizer

TOKENS = torch.arange(2 * 20).view(2, 20) * 7 % 256
Recipes = Callable[..., Recipe]


def pruned(model: Any, recipe: Recipe, **settings: Any) -> Pruned:
    return prune(model, recipe, tokenizer=tiny_tokenizer(), **settings)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(found: Any, expected: Any) -> None:
    theirs = weights(expected)
    for name, value in weights(found).items():
        assert torch.equal(value, theirs[name]), name


def assert_untouched(model: Any, family: str = "llama") -> None:
    assert_equal(model, tiny_model(family))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_recipe_prune_save_load_same_logits(family: str, recipe_for: Recipes, tmp_path: Path) -> None:
    recipe = recipe_for(budget=Budget(0.5), solver=SparseGPT())
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    result = pruned(tiny_model(family), Recipe.load(tmp_path / "recipe.toml"))
    save(result, tmp_path / "out")
    model = load(tmp_path / "out").model
    assert torch.equal(logits(model), logits(result.model))
    assert float((logits(model) - logits(tiny_model(family))).abs().max()) > 1e-3
    for site in describe(model).sites("linear"):
        matrix = read_weight(model.get_submodule(site.name))
        assert int((matrix == 0).sum()) == matrix.numel() / 2, site.name


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_the_matrices_of_the_blocks_changes(family: str, recipe_for: Recipes) -> None:
    result = pruned(tiny_model(family), recipe_for(solver=ALPS()))
    names = {f"{site.name}.weight" for site in describe(result.model).sites("linear")}
    dense = weights(tiny_model(family))
    for name, value in weights(result.model).items():
        assert torch.equal(value, dense[name]) == (name not in names), name


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_go_whole_from_consumers_and_producers(family: str, recipe_for: Recipes) -> None:
    """Half of the columns of every consumer, with the rows that fed them; test_whole.py has the answers."""
    dense, result = tiny_model(family), pruned(tiny_model(family), recipe_for(sites=("channel",), budget=Budget(0.5), solver=SparseGPT()))
    for before, after in zip(describe(dense).sites("channel"), describe(result.model).sites("channel"), strict=True):
        assert isinstance(before, ChannelSite)
        assert isinstance(after, ChannelSite)
        assert after.count == before.count // 2
        consumer = read_weight(result.model.get_submodule(after.consumer))
        assert consumer.shape[1] == after.count * after.width
        assert not bool((consumer == 0).all(0).any())
        for producer in after.producers:
            assert bool(read_weight(result.model.get_submodule(producer.name)).any(1).all()), producer.name
    reached = {record.site: record.reached for record in result.report.sites}
    assert reached == {site.name: 0.5 for site in describe(result.model).sites("channel")}


@pytest.mark.parametrize("granularity", [Unstructured("row"), Unstructured("matrix"), NM(2, 4), NM(4, 8), Tile(2, 4), Columns(4)],
                         ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_report_counts_what_the_model_has(family: str, granularity: Granularity, recipe_for: Recipes) -> None:
    result = pruned(tiny_model(family), recipe_for(solver=Mask(Wanda()), granularity=granularity))
    zeros = {site.name: float((read_weight(result.model.get_submodule(site.name)) == 0).float().mean())
             for site in describe(result.model).sites("linear")}
    assert {record.site: record.reached for record in result.report.sites} == pytest.approx(zeros, abs=1e-6)
    assert result.report.sparsity == pytest.approx(0.5, abs=0.03)
    assert [record.asked for record in result.report.sites] == list(result.report.allocation[0].values())


def test_native_scope_is_row_for_wanda_and_matrix_for_magnitude(recipe_for: Recipes) -> None:
    for criterion, even in ((Wanda(), True), (Magnitude(), False)):
        model = pruned(tiny_model(), recipe_for(solver=Mask(criterion))).model
        per_row = (model.model.layers[0].mlp.down_proj.weight == 0).sum(1).unique()
        assert (len(per_row) == 1) is even


def test_the_error_of_a_site_is_measured_on_what_its_pruned_predecessors_give_it(recipe_for: Recipes) -> None:
    """By hand: ||(W - W') x||^2 / ||W x||^2 over the tokens, with x from the model in which all that comes before is pruned."""
    recipe = recipe_for(solver=SparseGPT())
    result = pruned(tiny_model(), recipe)
    halfway, name = tiny_model(), "model.layers.1.mlp.down_proj"
    halfway.load_state_dict({**result.model.state_dict(), f"{name}.weight": halfway.get_parameter(f"{name}.weight")})
    seen: list[Tensor] = []
    halfway.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0].reshape(-1, 48)))
    with torch.no_grad():
        halfway(input_ids=recipe.calibration.tokens(tiny_tokenizer(), halfway, recipe.seed))
    dense, sparse = (read_weight(model.get_submodule(name)) for model in (tiny_model(), result.model))
    x = torch.cat(seen).double()
    lost, whole = (x @ (dense - sparse).double().T).square().sum(), (x @ dense.double().T).square().sum()
    (record,) = [record for record in result.report.sites if record.site == name]
    assert record.error == pytest.approx(float(lost / whole), rel=1e-4)


def test_skipped_sites_stay_dense(recipe_for: Recipes) -> None:
    model = tiny_model()
    result = pruned(model, recipe_for(skip=("*.0.*", "*.down_proj")))
    assert {record.site for record in result.report.sites} == {
        f"model.layers.1.{part}" for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                             "mlp.gate_proj", "mlp.up_proj")}
    assert_equal(model.model.layers[0], tiny_model().model.layers[0])
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, tiny_model().model.layers[1].mlp.down_proj.weight)


def test_stages_run_in_order_on_what_the_last_one_left(text_file: Path) -> None:
    first = Stage(("channel",), Budget(0.5), solver=SparseGPT())
    second = Stage(("linear",), Budget(0.25), solver=Mask(Wanda()), granularity=Unstructured("row"))
    recipe = Recipe((first, second), Calibration(str(text_file), samples=4, length=32), (), ())
    result = pruned(tiny_model(), recipe)
    assert len(result.report.sites) == 4 + 14
    assert len(result.report.allocation) == 2
    weight = result.model.model.layers[0].mlp.down_proj.weight
    assert weight.shape == (32, 24)
    assert (weight == 0).sum(1).unique().tolist() == [18]
    assert result.report.sparsity >= 1 - 0.5 * 0.25


@pytest.mark.parametrize("sparsity", [0.0, 0.99])
def test_the_ends_of_the_range_work(sparsity: float, recipe_for: Recipes) -> None:
    for solver in (Mask(Wanda()), SparseGPT(), ALPS()):
        model = tiny_model()
        report = pruned(model, recipe_for(budget=Budget(round(1 - sparsity, 2)), solver=solver)).report
        if sparsity == 0:
            assert_untouched(model)
        assert report.sparsity >= sparsity


def test_with_a_criterion_that_needs_no_data_nothing_but_the_model_is_needed() -> None:
    recipe = Recipe((Stage(solver=Mask(Magnitude())),), Calibration("nowhere"), (), ())
    assert prune(tiny_model(), recipe).report.sparsity == 0.5


def test_quality_and_answers_are_measured_before_and_after(text_file: Path, recipe_for: Recipes, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("words that stand in no other text but this, in lines of more than forty letters. " * 30)
    metric = Perplexity(str(tmp_path / "report.txt"), length=32, tokens=256)
    report = pruned(tiny_model(), recipe_for(metrics=(metric, metric), prompts=("a cherry", "plum"), solver=ALPS())).report
    assert len(report.before) == len(report.after) == 2
    assert report.before[0].value != report.after[0].value
    assert report.before[0].protocol == report.after[0].protocol
    assert len(report.answers_before) == len(report.answers_after) == 2
    assert {"dense", "pruning", "solving", "pruned"} <= set(report.seconds)


def test_progress_tells_every_site_once_and_ends_at_its_total(recipe_for: Recipes) -> None:
    told: list[Progress] = []
    report = pruned(tiny_model(), recipe_for(), watch=told.append).report
    assert [progress.record for progress in told if progress.phase == "pruning"] == list(report.sites)
    done = [progress.done for progress in told]
    assert done == sorted(done)
    assert told[-1].done == told[-1].total


def test_the_same_recipe_gives_the_same_model_and_another_seed_another(recipe_for: Recipes) -> None:
    first, again, other = (pruned(tiny_model(), recipe_for(seed=seed, samples=3)).model for seed in (0, 0, 1))
    assert_equal(first, again)
    assert not torch.equal(first.model.layers[0].mlp.up_proj.weight, other.model.layers[0].mlp.up_proj.weight)


def test_calibration_by_the_model_s_own_text_works(recipe_for: Recipes) -> None:
    assert pruned(tiny_model(), recipe_for(corpus="self", samples=3, length=16)).report.sparsity == 0.5


@pytest.mark.parametrize("activations", ["disk", "device"])
def test_activations_on_disk_give_the_same_model_bit_for_bit(activations: Any, recipe_for: Recipes) -> None:
    held, placed = tiny_model(), tiny_model()
    pruned(held, recipe_for())
    pruned(placed, recipe_for(), placement=Placement("cpu", activations))
    assert_equal(placed, held)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "bert"])
def test_half_precision_models_keep_their_dtype_and_their_counts(family: str, dtype: torch.dtype, recipe_for: Recipes) -> None:
    model = tiny_model(family, dtype)
    report = pruned(model, recipe_for(solver=ALPS())).report
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert report.sparsity == 0.5
    exact = pruned(tiny_model(family), recipe_for(solver=ALPS())).report
    for ours, theirs in zip(report.sites, exact.sites, strict=True):
        assert ours.error == pytest.approx(theirs.error, rel=0.2)


def test_a_tokenizer_s_own_bos_reaches_the_model(recipe_for: Recipes) -> None:
    tokens = recipe_for().calibration.tokens(tiny_tokenizer(bos=True), tiny_model(), 0)
    assert (tokens[:, 0] == 256).all()
    assert prune(tiny_model(), recipe_for(), tokenizer=tiny_tokenizer(bos=True)).report.sparsity == 0.5


def dead_column(model: Any) -> None:
    model.model.layers[0].mlp.gate_proj.weight.data[[3, 7]] = 0


def already_sparse(model: Any) -> None:
    weight = model.model.layers[1].self_attn.o_proj.weight.data
    weight[:, ::4] = 0
    model.model.layers[1].mlp.up_proj.weight.data.zero_()


HARD: dict[str, tuple[Any, dict[str, int]]] = {
    "a dead input": (dead_column, {}), "a rank-deficient Gram": (lambda model: None, {"samples": 1, "length": 8}),
    "one sequence": (lambda model: None, {"samples": 1}), "a layer that is already sparse": (already_sparse, {}),
}


@pytest.mark.parametrize("solver", [Mask(Wanda()), SparseGPT(), ALPS()], ids=["wanda", "sparsegpt", "alps"])
@pytest.mark.parametrize("case", HARD)
def test_works_from_end_to_end_with(case: str, solver: Any, recipe_for: Recipes, tmp_path: Path) -> None:
    change, settings = HARD[case]
    model = tiny_model()
    change(model)
    result = pruned(model, recipe_for(solver=solver, **settings))
    save(result, tmp_path / "out")
    assert torch.isfinite(logits(load(tmp_path / "out").model)).all()
    assert result.report.sparsity >= 0.5


REPORTED = ["words that stand on a line of their own, long enough to be no accident", "short\nlines\nonly\nbut\nequal"]


@pytest.mark.parametrize("line", REPORTED, ids=["long lines", "short lines"])
def test_text_that_is_both_calibrated_and_reported_on_is_refused(line: str, recipe_for: Recipes, tmp_path: Path) -> None:
    """By content: the same words under another name."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{line}\n" * 50)
    model = tiny_model()
    recipe = recipe_for(corpus=str(tmp_path / "a.txt"), metrics=(Perplexity(str(tmp_path / "b.txt"), length=32, tokens=64),))
    with pytest.raises(CorpusError, match=r"calibration text \(a\.txt train\) holds 100% of the report text \(b\.txt test\)"):
        pruned(model, recipe)
    assert_untouched(model)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_site_before_anything_is_pruned(block: int, bad: float,
                                                                                    recipe_for: Recipes) -> None:
    for name in (f"model.layers.{block}.mlp.up_proj.weight", f"model.layers.{block}.input_layernorm.weight", "lm_head.weight"):
        model = tiny_model()
        model.get_parameter(name).data.flatten()[5] = bad
        for recipe in (recipe_for(solver=Mask(Magnitude())), recipe_for(corpus="self")):
            with pytest.raises(CalibrationError, match=rf"^{name}: 1 of its \d+ weights are not finite"):
                pruned(model, recipe)
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, tiny_model().model.layers[0].mlp.down_proj.weight)


def test_activations_that_are_not_finite_are_refused_by_site(recipe_for: Recipes) -> None:
    model = tiny_model()
    model.model.layers[1].input_layernorm.weight.data[5] = 3e38  # and what is above 1.2 times that is too large
    with pytest.raises(CalibrationError, match=r"^model\.layers\.1\.self_attn\.q_proj: .* of 32 inputs are not finite"):
        pruned(model, recipe_for())


@pytest.mark.parametrize(("settings", "error", "reason"), [
    ({"granularity": NM(2, 5), "budget": Budget(0.4), "solver": Mask()}, RecipeError, r"2:5 needs a multiple of 5 inputs, found 32"),
    ({"granularity": Tile(5, 5), "solver": Mask()}, RecipeError, "tiles of 5x5 do not divide"),
    ({"skip": ("*",)}, RecipeError, r"skip = \['\*'\]: leaves no linear site"),
    ({"length": 4096}, RecipeError, "the model takes at most 128 tokens"),
    ({"corpus": "nowhere.txt"}, CorpusError, "no such file"),
    ({"metrics": (Perplexity("nowhere.txt"),)}, CorpusError, "no such file"),
], ids=["n:m", "tile", "skip", "length", "corpus", "report corpus"])
def test_what_cannot_be_done_is_refused_before_the_model_runs(settings: dict[str, Any], error: type[PrunusError], reason: str,
                                                              recipe_for: Recipes) -> None:
    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(error, match=reason):
        pruned(model, recipe_for(**settings))
    assert_untouched(model)


def test_a_missing_tokenizer_and_an_unknown_architecture_are_refused(recipe_for: Recipes) -> None:
    with pytest.raises(RecipeError, match="no tokenizer: text is read"):
        prune(tiny_model(), recipe_for())
    model = tiny_model()
    model.config.model_type = "mamba"
    with pytest.raises(LoadError, match="architecture 'mamba' is unknown"):
        pruned(model, recipe_for())


def test_fewer_sequences_than_asked_for_are_noted(recipe_for: Recipes) -> None:
    report = pruned(tiny_model(), recipe_for(samples=10_000)).report
    assert len(report.notes) == 1
    assert "of the 10000 sequences asked for" in report.notes[0]


@pytest.mark.parametrize("family", CAUSAL)
def test_generation_with_a_cache_still_agrees_with_the_whole_pass(family: str, recipe_for: Recipes) -> None:
    model = pruned(tiny_model(family), recipe_for(solver=Mask(Wanda()))).model
    with torch.no_grad():
        written = model.generate(TOKENS[:1], attention_mask=torch.ones_like(TOKENS[:1]), max_new_tokens=5, do_sample=False,
                                 min_new_tokens=5, pad_token_id=257)
        again = model(input_ids=written[:, :-1]).logits[0, -1].argmax()
    assert int(again) == int(written[0, -1])
