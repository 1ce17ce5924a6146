"""Stages that choose channels by the gradient of the loss, or rank them together; and the bias that FLAP adds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunus.pipeline
from prunus.allocation import columns_of
from prunus.allocation.influence import Influence
from prunus.allocation.ranking import Ranking
from prunus.allocation.reconstruction import Reconstruction
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.loss import channel_loss
from prunus.calibration.sample import Calibration
from prunus.criteria.flap import FLAP
from prunus.criteria.taylor import Taylor
from prunus.errors import RecipeError
from prunus.granularity import keep_mask
from prunus.pipeline import Progress, prune
from prunus.recipe import Recipe, Stage
from prunus.result import Pruned
from prunus.search.plan import Search
from prunus.search.strategies.local import Local
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.stats import LossNeeds
from prunus.surgery.write import clear_rows, module_layout

from ..tiny import CAUSAL, channels_of, tiny_model, tiny_tokenizer

TOKENS = torch.arange(2 * 20).view(2, 20) * 7 % 256
BY_LOSS = Stage(("channel",), Budget(0.7), solver=Refit(Taylor(sequences=3)), allocation=Ranking(Taylor(sequences=3)))


class Stop(Exception):
    """What interrupts a run."""


def recipe(text_file: Path, *stages: Stage) -> Recipe:
    return Recipe(stages, Calibration(str(text_file), samples=4, length=32), (), ())


def run(model: Any, wanted: Recipe, **settings: Any) -> Pruned:
    return prune(model, wanted, tokenizer=tiny_tokenizer(), **settings)


@torch.no_grad()
def answers(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=TOKENS).logits
    return logits


@pytest.mark.parametrize("family", CAUSAL)
def test_the_channels_that_go_are_those_the_loss_of_the_dense_model_depends_on_least(family: str, text_file: Path) -> None:
    """Against the dense model in which they are zeroed by hand, by sums taken from it."""
    model, masked = tiny_model(family), tiny_model(family)
    wanted = recipe(text_file, Stage(("channel",), Budget(0.6), solver=Mask(Taylor())))
    report = run(model, wanted).report
    tokens = wanted.calibration.tokens(tiny_tokenizer(), masked, wanted.seed)
    found = channel_loss(masked, describe(masked), channels_of(masked), tokens, LossNeeds(channels=("second",)))
    for site in channels_of(masked):
        module = masked.get_submodule(site.consumer)
        kept = keep_mask(found[site.name].sums("second")[None], report.allocation[0][site.name], replace(columns_of(site), width=1))[0]
        module_layout(module, module.weight.data).mul_(kept.repeat_interleave(site.width))
        clear_rows(masked, site.producers, (~kept).nonzero().flatten())
    assert (answers(model) - answers(masked)).abs().max() < 1e-4
    assert sum(parameter.numel() for parameter in model.parameters()) < report.parameters[0]


@pytest.mark.parametrize("form", ["vector", "element", "mixed", "fused"])
def test_every_form_prunes_to_the_budget(form: Any, text_file: Path) -> None:
    report = run(tiny_model(), recipe(text_file, Stage(("channel",), Budget(0.6), solver=Refit(Taylor(form))))).report
    assert report.sparsity >= 0.4
    assert all(record.error is not None and record.error < 1 for record in report.sites)


def test_the_loss_is_asked_once_a_stage_of_the_model_that_the_stage_finds(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator, the search and the solver of a stage share the answer."""
    asked: list[list[int]] = []
    real = prunus.pipeline.known_loss
    monkeypatch.setattr(prunus.pipeline, "known_loss", lambda model, anatomy, sites, *rest: (
        asked.append([site.count for site in sites]), real(model, anatomy, sites, *rest))[1])
    search = Search(Local(), evaluations=4.0, levels=(0.0, 0.25, 0.5), text=Calibration("self", samples=8, length=24))
    model = tiny_model()
    run(model, recipe(text_file, replace(BY_LOSS, search=search), replace(BY_LOSS, budget=Budget(0.8))))
    first, second = asked
    assert first == [2, 48, 2, 48]
    assert sum(second) < sum(first)
    assert sum(site.count for site in channels_of(model)) < sum(second)


@pytest.mark.parametrize("allocation", [Ranking(FLAP()), Reconstruction(Refit(Taylor()))], ids=["flap", "reconstruction"])
def test_solver_and_allocator_may_look_at_other_things(allocation: Any, text_file: Path) -> None:
    report = run(tiny_model(), recipe(text_file, replace(BY_LOSS, allocation=allocation))).report
    assert report.sparsity >= 0.3
    assert len(set(report.allocation[0].values())) > 1


def stop_at(site: str, stage: int) -> Callable[[Progress], None]:
    """Interrupt when this site is finished for so many times."""
    left = [stage]

    def watch(progress: Progress) -> None:
        if progress.record is not None and progress.record.site == site:
            left[0] -= 1
            if not left[0]:
                raise Stop
    return watch


@pytest.mark.parametrize("stage", [1, 2])
def test_a_resumed_run_by_the_loss_is_bit_for_bit_the_uninterrupted_one(stage: int, text_file: Path, tmp_path: Path) -> None:
    wanted = recipe(text_file, BY_LOSS, replace(BY_LOSS, budget=Budget(0.8)))
    expected = run(tiny_model(), wanted)
    with pytest.raises(Stop):
        run(tiny_model(), wanted, resume=tmp_path / "run", watch=stop_at("model.layers.1.mlp.channels", stage))
    found = run(tiny_model(), wanted, resume=tmp_path / "run")
    theirs = expected.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in found.model.state_dict().items())
    assert found.report.allocation == expected.report.allocation


def test_a_search_over_channels_by_the_loss_is_resumed_with_the_same_result(text_file: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == "searching" and progress.done > 3:
            raise Stop

    search = Search(Local(), evaluations=8.0, levels=(0.0, 0.25, 0.5), text=Calibration("self", samples=8, length=24))
    wanted = recipe(text_file, replace(BY_LOSS, search=search))
    expected = run(tiny_model(), wanted)
    with pytest.raises(Stop):
        run(tiny_model(), wanted, resume=tmp_path / "run", watch=stop)
    found = run(tiny_model(), wanted, resume=tmp_path / "run")
    assert found.report.searches[0].curve == expected.report.searches[0].curve
    assert torch.equal(answers(found.model), answers(expected.model))


@pytest.mark.parametrize("stage", [Stage(("channel",), solver=Refit(Taylor())),
                                   Stage(("channel",), allocation=Ranking(Taylor()), solver=Mask())], ids=["solver", "allocation"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_model_that_predicts_nothing_is_refused_before_it_is_touched(family: str, stage: Stage, text_file: Path) -> None:
    model = tiny_model(family)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(RecipeError, match=r"^(solver|allocation): sensitivity to the loss is measured by the next token"):
        run(model, recipe(text_file, stage))
    dense = tiny_model(family).state_dict()
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())


def test_text_is_needed_for_the_loss_though_the_solver_looks_at_no_inputs(text_file: Path) -> None:
    with pytest.raises(RecipeError, match="no tokenizer: text is read"):
        prune(tiny_model(), recipe(text_file, Stage(("channel",), solver=Mask(Taylor()))))


@pytest.mark.parametrize("per", ["sublayer", "block"])
def test_influence_by_the_loss_takes_the_branches_with_the_least_sum_of_weight_times_gradient(per: Any, text_file: Path) -> None:
    model, dense = tiny_model(num_hidden_layers=4), tiny_model(num_hidden_layers=4)
    wanted = recipe(text_file, Stage(("sublayer",), Budget(0.7), allocation=Influence(per=per, metric="taylor")))
    report = run(model, wanted).report
    tokens = wanted.calibration.tokens(tiny_tokenizer(), dense, wanted.seed)
    dense(input_ids=tokens, labels=tokens).loss.backward()
    scores: dict[str, float] = {}
    for site in describe(dense).sites("sublayer"):
        weights: list[Any] = [module.weight for name, module in dense.named_modules() if name.startswith(site.name) and "proj" in name]
        group = site.name if per == "sublayer" else f"layers.{site.block}."
        scores[group] = scores.get(group, 0.0) + sum(float((weight.detach() * weight.grad).abs().sum()) for weight in weights)
    gone = {group for group in scores for name, share in report.allocation[0].items() if share and group in name}
    assert gone == set(sorted(scores, key=lambda group: scores[group])[: len(gone)])
    assert report.sparsity >= 0.3


def test_influence_asks_for_the_loss_only_where_it_is_said() -> None:
    assert Influence().loss_needs is None
    with pytest.raises(RecipeError, match="expected 'sublayer', or 'block' with the metric 'cosine' or 'taylor'"):
        Influence(per="block", metric="relative")


def mean_output(model: Any, name: str, tokens: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, given, output: seen.append(output.detach()))
    with torch.no_grad():
        model(input_ids=tokens)
    handle.remove()
    return seen[0].flatten(0, -2).double().mean(0)


@pytest.mark.parametrize(("family", "branch"), [
    ("opt", "fc2"), ("opt", "self_attn.out_proj"), ("gpt2", "mlp.c_proj"), ("gpt2", "attn.c_proj"), ("gpt_neox", "mlp.dense_4h_to_h"),
    ("bert", "attention.output.dense"),
])
def test_flap_leaves_the_mean_output_of_a_matrix_with_a_bias_where_it_was(family: str, branch: str, text_file: Path) -> None:
    """One site alone is pruned, so that its inputs are those of the dense model."""
    dense = tiny_model(family)
    site = next(site for site in channels_of(dense) if site.block == 1 and site.consumer.endswith(branch))
    others = tuple(other.name for other in channels_of(dense) if other != site)
    errors = []
    for bias in (True, False):
        model, stage = tiny_model(family), Stage(("channel",), Budget(0.5), solver=Mask(FLAP(bias)), skip=others)
        wanted = recipe(text_file, stage)
        run(model, wanted)
        assert model.get_submodule(site.consumer).weight.numel() < dense.get_submodule(site.consumer).weight.numel()
        tokens = wanted.calibration.tokens(tiny_tokenizer(), dense, wanted.seed)
        before, after = (mean_output(each, site.consumer, tokens) for each in (dense, model))
        errors.append(float((after - before).abs().max()))
    assert errors[0] < 2e-6
    assert errors[1] > 1e-3


def test_where_there_is_no_bias_flap_adds_none(text_file: Path) -> None:
    with_bias, without = tiny_model(), tiny_model()
    for model, bias in ((with_bias, True), (without, False)):
        run(model, recipe(text_file, Stage(("channel",), Budget(0.6), solver=Mask(FLAP(bias)))))
    assert with_bias.model.layers[0].mlp.down_proj.bias is None
    assert torch.equal(answers(with_bias), answers(without))
