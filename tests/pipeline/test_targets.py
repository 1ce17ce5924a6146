"""What matrices are fitted to: outputs of the dense model, tokens by what they cost, and the order within a block."""

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.calibration.loss import token_weights
from prunus.calibration.placement import Placement
from prunus.calibration.stream import View, stream
from prunus.calibration.target import Target
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.wanda import Wanda
from prunus.errors import CalibrationError, RecipeError
from prunus.granularity import NM
from prunus.pipeline import prune
from prunus.problem import LayerProblem
from prunus.recipe import Recipe, Stage, build
from prunus.sites import LinearSite
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT
from prunus.stats import InputStats
from prunus.surgery.write import read_weight, write

from ..problems import generator, inputs
from ..tiny import CAUSAL, FAMILIES, tiny_model, tiny_tokenizer

TOKENS = torch.randint(0, 250, (6, 24), generator=generator(0))
SOLVERS = [SparseGPT(), ALPS(), Refit(), Mask(Wanda()), Mask(Magnitude())]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=["sparsegpt", "alps", "refit", "wanda", "magnitude"])


def linear(model: Any) -> list[LinearSite]:
    return [site for site in describe(model).sites("linear") if isinstance(site, LinearSite)]


@torch.no_grad()
def inputs_of(model: Any) -> dict[str, Tensor]:
    """By matrix, what it reads of every token, in the model's own forward."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        return lambda _, given: seen.update({name: given[0].reshape(-1, given[0].shape[-1]).clone()})

    handles = [model.get_submodule(site.name).register_forward_pre_hook(hook(site.name)) for site in linear(model)]
    model(input_ids=TOKENS, **({"use_cache": False} if model.can_generate() else {}))
    for handle in handles:
        handle.remove()
    return seen


def walk(model: Any, write: Callable[[View], None], needs: Any = "gram", **settings: Any) -> dict[str, View]:
    """What the stream gives, each matrix written to as soon as it is given."""
    found: dict[str, View] = {}
    for views in stream(model, describe(model), linear(model), TOKENS, needs, batch=4, **settings):
        for view in views:
            found[view.site.name] = view
            write(view)
    return found


def halve(view: View) -> None:
    view.module.weight.data.mul_(0.5)


def drifted(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, InputStats]:
    """A weight, what it reads, what it would read in a dense model, and their moments."""
    x = inputs(seed)
    dense = x + 0.3 * inputs(seed + 1)
    stats = InputStats(24, asymmetric=True)
    for part in range(0, 200, 50):
        stats.update(x[part : part + 50], dense=dense[part : part + 50])
    return torch.randn(12, 24, generator=generator(seed)), x, dense, stats


@pytest.mark.parametrize("asymmetry", [0.25, 1.0])
def test_the_goal_is_the_least_squares_fit_to_the_interpolated_outputs(asymmetry: float) -> None:
    weight, x, dense, stats = drifted()
    aimed = (x + asymmetry * (dense - x)) @ weight.T
    expected = numpy.linalg.lstsq(x.double().numpy(), aimed.double().numpy(), rcond=None)[0].T
    found = Target(asymmetry=asymmetry, damping=0.0).goal(weight, stats)
    assert numpy.abs(found.double().numpy() - expected).max() < 1e-4 * numpy.abs(expected).max()


def test_damping_pulls_the_goal_to_the_weight_by_as_much_as_ridge_regression() -> None:
    """The rows of a ridge, sqrt(0.1 x mean diagonal x tokens) on the diagonal, are aimed at the weight itself."""
    weight, x, dense, stats = drifted()
    ridge = torch.eye(24) * (0.1 * stats.gram.diagonal().mean() * 200).sqrt()
    rows, aimed = torch.cat([x, ridge]).double().numpy(), torch.cat([dense @ weight.T, ridge @ weight.T]).double().numpy()
    expected = numpy.linalg.lstsq(rows, aimed, rcond=None)[0].T
    found = Target(asymmetry=1.0, damping=0.1).goal(weight, stats)
    assert numpy.abs(found.double().numpy() - expected).max() < 1e-4 * numpy.abs(expected).max()


def test_the_distance_to_what_is_aimed_at_is_that_of_the_goal_and_the_error_that_a_solver_sees() -> None:
    weight, x, dense, stats = drifted()
    goal = Target(asymmetry=1.0, damping=0.0).goal(weight, stats)
    problem = LayerProblem(goal, stats, NM(2, 4), 0.5)
    pruned = SparseGPT().solve(problem).weight
    aimed = dense @ weight.T
    whole, least = ((aimed - x @ other.T).square().sum() for other in (pruned, goal))
    assert float(whole - least) == pytest.approx(problem.error(pruned) * float((x @ goal.T).square().sum()), rel=1e-3)
    assert float(least) > 0.01 * float(aimed.square().sum())


def test_what_was_merged_is_what_was_seen_at_once() -> None:
    _, x, dense, stats = drifted()
    first, second = InputStats(24, asymmetric=True), InputStats(24, asymmetric=True)
    first.update(x[:80], dense=dense[:80])
    second.update(x[80:], dense=dense[80:])
    first.merge(second)
    assert torch.allclose(first.drift(0.01), stats.drift(0.01), atol=1e-4)


def test_few_tokens_give_a_finite_goal_that_is_near_the_weight_where_nothing_is_known() -> None:
    weight, x, dense, _ = drifted()
    stats = InputStats(24, asymmetric=True)
    stats.update(x[:3], dense=dense[:3])
    moved = Target(asymmetry=1.0).goal(weight, stats) - weight
    unseen = torch.linalg.svd(x[:3])[2][3:]  # directions that no token has
    assert bool(moved.isfinite().all())
    assert float((moved @ unseen.T).abs().max()) < 1e-3 * float(moved.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_drifts_are_between_the_dense_model_s_inputs_and_those_of_the_pruned_one(family: str) -> None:
    dense, model = inputs_of(tiny_model(family)), tiny_model(family)
    found = walk(model, halve, target=Target(asymmetry=1.0))
    now = inputs_of(model)
    for name, view in found.items():
        expected = (dense[name] - now[name]).double().T @ now[name].double() / TOKENS.numel()
        given = view.stats.drift(0.1).double() @ view.stats.damped(0.1).double()
        size = float((now[name].square().mean(0).max() * (dense[name] - now[name]).square().mean(0).max()).sqrt())
        assert float((given - expected).abs().max()) <= 1e-4 * size + 1e-9, name
    first = linear(model)[0].name
    assert float(found[first].stats.drift(0.1).abs().max()) == 0  # what enters the first block is never pruned


def test_the_pruned_model_s_own_moments_are_the_same_with_the_dense_model_beside_it() -> None:
    alone = walk(tiny_model(), halve)
    for name, view in walk(tiny_model(), halve, target=Target(asymmetry=0.5)).items():
        assert torch.equal(view.stats.gram, alone[name].stats.gram)


def test_what_is_written_to_a_block_on_leaving_it_is_not_written_to_the_dense_model_even_if_no_matrix_of_it_is_pruned() -> None:
    dense, model = inputs_of(tiny_model()), tiny_model()
    site = next(site for site in linear(model) if site.block == 1)

    def leaving(depth: int, states: Any, beside: Any) -> None:
        model.model.layers[depth].mlp.down_proj.weight.data.mul_(0.5)

    (views,) = (views for views in stream(model, describe(model), [site], TOKENS, "gram", target=Target(asymmetry=1.0), leaving=leaving))
    now = inputs_of(model)[site.name].double()
    expected = (dense[site.name].double() - now).T @ now / TOKENS.numel()
    found = views[0].stats.drift(0.1).double() @ views[0].stats.damped(0.1).double()
    assert float(expected.abs().max()) > 0.01
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("activations", ["disk", "device"])
def test_where_activations_wait_changes_no_drift(activations: Any) -> None:
    target = Target(asymmetry=1.0)
    found = walk(tiny_model(), halve, target=target, placement=Placement("cpu", activations))
    for name, view in walk(tiny_model(), halve, target=target).items():
        assert torch.equal(found[name].stats.drift(0.01), view.stats.drift(0.01))


@every_solver
def test_without_asymmetry_nothing_changes_by_a_bit(solver: Any, recipe_for: Any) -> None:
    plain, found = (prune(tiny_model(), recipe_for(solver=solver, target=target), tokenizer=tiny_tokenizer())
                    for target in (Target(), Target(asymmetry=0.0, damping=0.5)))
    assert [record.error for record in found.report.sites] == [record.error for record in plain.report.sites]
    for name, value in plain.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name


@every_solver
def test_every_solver_reaches_its_sparsity_with_the_dense_outputs_as_its_goal(solver: Any, recipe_for: Any) -> None:
    plain = prune(tiny_model(), recipe_for(solver=solver), tokenizer=tiny_tokenizer())
    found = prune(tiny_model(), recipe_for(solver=solver, target=Target(asymmetry=1.0)), tokenizer=tiny_tokenizer())
    assert found.report.sparsity == plain.report.sparsity
    assert all(record.error is not None and 0 < record.error < 1 for record in found.report.sites)
    last = linear(found.model)[-1].name
    assert not torch.equal(found.model.get_submodule(last).weight, plain.model.get_submodule(last).weight)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "distilbert"])
def test_blocks_come_closer_to_what_the_dense_model_gives(family: str) -> None:
    """The last matrix's outputs, over the sequences that calibrated; the sum over sites of what is closest by construction."""
    dense = tiny_model(family)
    aims = {name: x @ read_weight(dense.get_submodule(name)).T for name, x in inputs_of(dense).items()}

    def distance(asymmetry: float) -> float:
        model = tiny_model(family)
        anatomy, target = describe(model), Target(asymmetry=asymmetry, damping=1e-4)
        for views in stream(model, anatomy, linear(model), TOKENS, "gram", target=target):
            for view in views:
                weight = target.goal(read_weight(view.module), view.stats)
                solution = Refit().solve(LayerProblem(weight, view.stats, NM(2, 4), 0.5, view.site.name))
                write(view.module, solution)
        name = linear(model)[-1].name
        found = inputs_of(model)[name] @ read_weight(model.get_submodule(name)).T
        return float((found - aims[name]).square().sum() / aims[name].square().sum())

    assert distance(1.0) < distance(0.0)


@pytest.mark.parametrize("family", CAUSAL)
def test_tokens_weigh_what_the_squared_gradient_at_their_block_s_output_says(family: str) -> None:
    model = tiny_model(family)
    found = token_weights(model, describe(model), TOKENS, batch=4)
    seen: dict[int, Tensor] = {}

    def keep(depth: int) -> Any:
        def hook(module: Any, given: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            value.retain_grad()
            seen[depth] = value
        return hook

    for depth, block in enumerate(describe(model).blocks):
        model.get_submodule(block.name).register_forward_hook(keep(depth))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for depth, value in seen.items():
        squares = value.grad.double().square().sum(-1)
        expected = (squares / squares.mean()).clamp(max=10)
        expected = expected / expected.mean()
        assert torch.allclose(found[depth].double(), expected, rtol=1e-3, atol=1e-6)
        assert float(found[depth].mean()) == pytest.approx(1, rel=1e-5)


def test_weights_of_tokens_multiply_all_moments() -> None:
    x, dense = inputs(0), inputs(1)
    weights = torch.rand(200, generator=generator(2)) * 2
    weights /= weights.mean()
    stats = InputStats(24, asymmetric=True)
    stats.update(x.view(4, 50, 24), weights.view(4, 50), dense.view(4, 50, 24))
    gram = (x * weights[:, None]).T.double() @ x.double() / 200
    assert torch.allclose(stats.gram.double(), gram, atol=1e-5)
    assert torch.allclose(stats.power.double(), gram.diagonal(), atol=1e-5)
    assert torch.allclose(stats.mean, (x * weights[:, None]).mean(0), atol=1e-5)
    moved = (dense - x).double().T @ (x * weights[:, None]).double() / 200
    assert torch.allclose(stats.drift(0.1).double() @ stats.damped(0.1).double(), moved, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_weighted_statistics_are_those_of_the_whole_model_times_the_weights_of_each_block(family: str) -> None:
    model = tiny_model(family)
    weights, seen = token_weights(model, describe(model), TOKENS), inputs_of(model)
    for name, view in walk(tiny_model(family), lambda view: None, target=Target(fisher=True)).items():
        x, w = seen[name].double(), weights[view.site.block].reshape(-1, 1).double()
        expected = (x * w).T @ x / len(x)
        assert float((view.stats.gram.double() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("asymmetry", [0.0, 1.0])
@pytest.mark.parametrize("family", ["llama", "phi3", "bert"])
def test_all_of_a_block_at_once_is_as_in_the_dense_block_on_the_pruned_model_s_inputs(family: str, asymmetry: float) -> None:
    model, expected = tiny_model(family), tiny_model(family)
    found = walk(model, halve, target=Target(asymmetry=asymmetry, true_sequential=False))
    for site in linear(expected):
        if site.block == 0:
            halve(View(site, expected.get_submodule(site.name), InputStats(1)))
    first, second = inputs_of(tiny_model(family)), inputs_of(expected)  # the second block is dense, behind a pruned one
    assert list(found) == [site.name for site in linear(expected)]
    for name, view in found.items():
        x = (first if view.site.block == 0 else second)[name].double()
        assert float((view.stats.gram.double() - x.T @ x / len(x)).abs().max()) <= 1e-5 * float(x.square().mean(0).max())
        assert view.stats.tokens == TOKENS.numel()


@pytest.mark.parametrize("target", [Target(asymmetry=0.5, fisher=True), Target(asymmetry=1.0, true_sequential=False)],
                         ids=["all", "at once"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(family: str, target: Target, recipe_for: Any, tmp_path: Any) -> None:
    class Stop(Exception):
        pass

    recipe = recipe_for(solver=SparseGPT(), target=target)
    sites = linear(tiny_model(family))
    second = next(site.name for site in sites if site.block == 1)

    def stop(progress: Any) -> None:
        if progress.record is not None and progress.record.site == second:
            raise Stop

    with pytest.raises(Stop):
        prune(tiny_model(family), recipe, tokenizer=tiny_tokenizer(), resume=tmp_path / "run", watch=stop)
    found = prune(tiny_model(family), recipe, tokenizer=tiny_tokenizer(), resume=tmp_path / "run").model.state_dict()
    for name, value in prune(tiny_model(family), recipe, tokenizer=tiny_tokenizer()).model.state_dict().items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("end", ["exhausted", "closed"])
@pytest.mark.parametrize("true_sequential", [True, False])
def test_the_model_is_left_as_it_was(end: str, true_sequential: bool) -> None:
    model = tiny_model().train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    blocks = stream(model, describe(model), linear(model), TOKENS, "gram", target=Target(1.0, 0.01, True, true_sequential))
    next(blocks)
    if end == "exhausted":
        list(blocks)
    blocks.close()
    assert model.training
    assert all(torch.equal(parameter, before[name]) and parameter.requires_grad for name, parameter in model.named_parameters())
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_channels_aim_at_the_dense_outputs_too_and_are_cut_as_ever(recipe_for: Any) -> None:
    plain, found = (prune(tiny_model(), recipe_for(sites=("channel",), solver=Refit(), target=target), tokenizer=tiny_tokenizer())
                    for target in (Target(), Target(asymmetry=1.0)))
    assert found.report.parameters == plain.report.parameters
    assert not torch.equal(found.model.model.layers[1].mlp.down_proj.weight, plain.model.model.layers[1].mlp.down_proj.weight)


def test_a_search_solves_its_levels_on_weighted_tokens(recipe_for: Any) -> None:
    from prunus.calibration.sample import Calibration
    from prunus.search.plan import Search
    from prunus.search.strategies.random import Random

    search = Search(Random(), 2.0, text=Calibration("self", samples=4, length=16))
    plain, found = (prune(tiny_model(), recipe_for(solver=SparseGPT(), search=search, target=Target(fisher=fisher)),
                          tokenizer=tiny_tokenizer()).report.searches[0] for fisher in (False, True))
    assert found.first != plain.first


def test_a_matrix_that_does_not_read_one_row_per_token_is_refused_by_name() -> None:
    for given in ({"weights": torch.ones(7)}, {"dense": torch.ones(7, 4)}):
        with pytest.raises(CalibrationError, match=r"^blocks\.0\.expert: it reads 5 rows where 7 tokens pass"):
            InputStats(4, name="blocks.0.expert", asymmetric=True).update(torch.ones(5, 4), **given)


@pytest.mark.parametrize(("settings", "message"), [
    ({"asymmetry": 1.5}, "asymmetry in"), ({"asymmetry": -0.1}, "asymmetry in"), ({"damping": -1.0}, "no negative damping"),
    ({"asymetry": 1.0}, "Did you mean 'asymmetry'"), ({"fisher": 1}, "expected bool")])
def test_settings_that_mean_nothing_are_refused_with_their_place(settings: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"^recipe\.stage\[0\]\.target.*{message}"):
        build(Recipe, {"stage": [{"target": settings}]}, "recipe")


def test_where_nothing_is_solved_a_target_is_refused() -> None:
    from prunus.allocation.influence import Influence

    with pytest.raises(RecipeError, match=r"^target: says what matrices are fitted to, and where sublayers go none is solved"):
        Stage(("sublayer",), allocation=Influence(), target=Target(asymmetry=0.5))


def test_the_gradient_of_the_loss_of_a_model_without_a_next_token_is_refused_before_anything_is_touched(recipe_for: Any) -> None:
    model = tiny_model("distilbert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError, match=r"^target\.fisher: sensitivity to the loss is measured by the next token"):
        prune(model, recipe_for(target=Target(fisher=True)), tokenizer=tiny_tokenizer())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_too_few_tokens_for_the_dense_outputs_are_said_in_the_report(recipe_for: Any) -> None:
    few = prune(tiny_model(), recipe_for(target=Target(asymmetry=1.0)), tokenizer=tiny_tokenizer()).report.notes
    assert any("192 calibration tokens, and matrices with up to 48 inputs" in note for note in few)
    for enough in (recipe_for(samples=16, target=Target(asymmetry=1.0)), recipe_for()):
        assert not any("calibration tokens" in note for note in prune(tiny_model(), enough, tokenizer=tiny_tokenizer()).report.notes)


def test_a_recipe_with_a_target_is_written_and_read_again() -> None:
    import tomllib

    recipe = Recipe((Stage(target=Target(0.5, 0.1, True, False)),))
    assert build(Recipe, tomllib.loads(recipe.to_toml()), "recipe") == recipe

