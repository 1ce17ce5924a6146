"""Stages that take whole channels and branches: the model gets smaller, and says what the masked one says."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.allocation import columns_of
from prunus.allocation.influence import Influence
from prunus.allocation.owl import OWL
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.branches import branch_stats
from prunus.calibration.sample import Calibration
from prunus.criteria.magnitude import Magnitude
from prunus.errors import CalibrationError, RecipeError
from prunus.export.huggingface import save
from prunus.granularity import keep_mask
from prunus.loading import load
from prunus.pipeline import prune
from prunus.recipe import Recipe, Stage
from prunus.result import Pruned
from prunus.search import search
from prunus.search.plan import Search
from prunus.search.space import Query, Space, Trial
from prunus.search.strategies.bernoulli import Bernoulli
from prunus.search.strategies.evolution import Evolution
from prunus.search.strategies.progressive import Progressive
from prunus.search.strategies.random import Random
from prunus.silence import silenced
from prunus.sites import ChannelSite
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT
from prunus.surgery.write import clear_rows, module_layout

from ..tiny import CAUSAL, FAMILIES, branches_of, tiny_model, tiny_tokenizer

TOKENS = torch.arange(2 * 20).view(2, 20) * 7 % 256
BRANCHES = Stage(("sublayer",), Budget(0.7), allocation=Influence())


def run(model: Any, text_file: Path, *stages: Stage, **settings: Any) -> Pruned:
    recipe = Recipe(stages, Calibration(str(text_file), samples=4, length=32), (), ())
    return prune(model, recipe, tokenizer=tiny_tokenizer(), source="tiny", **settings)


@torch.no_grad()
def answers(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=TOKENS).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_that_are_zeroed_are_cut_and_the_answers_stay(family: str, text_file: Path) -> None:
    """Against the dense model in which the least columns, by magnitude, and their rows are zeroed by hand."""
    model, masked = tiny_model(family), tiny_model(family)
    report = run(model, text_file, Stage(("channel",), Budget(0.6), solver=Mask(Magnitude()))).report
    for site in describe(masked).sites("channel"):
        assert isinstance(site, ChannelSite)
        module = masked.get_submodule(site.consumer)
        weight = module_layout(module, module.weight.data)
        mask = keep_mask(weight.abs(), report.allocation[0][site.name], columns_of(site))
        weight.mul_(mask)
        clear_rows(masked, site.producers, (~mask[0].view(site.count, site.width)[:, 0]).nonzero().flatten())
    assert (answers(model) - answers(masked)).abs().max() < 1e-4
    dense, left = report.parameters
    assert left == sum(parameter.numel() for parameter in model.parameters()) < dense
    assert report.sparsity >= 0.4
    assert {site.name: site.size for site in describe(model).sites("channel")} != {
        site.name: site.size for site in describe(masked).sites("channel")}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_least_influential_branches_are_left_out(family: str, text_file: Path) -> None:
    model, dense = tiny_model(family), tiny_model(family)
    report = run(model, text_file, BRANCHES).report
    gone = [site for site in branches_of(dense) if report.allocation[0][site.name] == 1]
    sizes = {site.name: site.size for site in branches_of(dense)}
    assert 0.3 * sum(sizes.values()) <= sum(site.size for site in gone) < sum(sizes.values())
    with silenced(dense, gone):
        assert (answers(model) - answers(dense)).abs().max() < 1e-4
    assert report.sparsity == pytest.approx(sum(site.size for site in gone) / sum(sizes.values()))
    assert [record.reached for record in report.sites] == [float(site in gone) for site in branches_of(dense)]


@torch.no_grad()
def test_influence_is_one_minus_the_cosine_of_the_stream_before_and_behind() -> None:
    """Of a Llama the stream is what the norm of a branch is given."""
    model = tiny_model()
    seen: dict[str, torch.Tensor] = {}
    for name in ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.layers.1.input_layernorm"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0]))
    model(input_ids=TOKENS)
    first, middle, last = seen.values()
    stats = branch_stats(model, describe(model), TOKENS)
    cosine = torch.cosine_similarity
    assert stats["model.layers.0.self_attn"].cosine == pytest.approx(float(cosine(first, middle, dim=-1).mean()), abs=1e-6)
    assert stats["model.layers.0.mlp"].cosine == pytest.approx(float(cosine(middle, last, dim=-1).mean()), abs=1e-6)
    for name in ("self_attn", "mlp"):
        assert stats[f"model.layers.0.{name}"].block == pytest.approx(float(cosine(first, last, dim=-1).mean()), abs=1e-6)
    assert stats["model.layers.0.mlp"].before == pytest.approx(float(middle.square().sum(-1).mean().sqrt()), rel=1e-5)
    assert stats["model.layers.0.mlp"].added == pytest.approx(float((last - middle).square().sum(-1).mean().sqrt()), rel=1e-5)
    relative = ((last - middle).norm(dim=-1) / middle.norm(dim=-1)).mean()
    assert stats["model.layers.0.mlp"].relative == pytest.approx(float(relative), rel=1e-5)


def test_a_stream_that_is_not_finite_is_refused_by_the_name_of_its_block() -> None:
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(CalibrationError, match=r"model\.layers\.1: its output is not finite"):
        branch_stats(model, describe(model), TOKENS)


def test_influence_takes_whole_blocks_when_it_is_asked_to(text_file: Path) -> None:
    model = tiny_model(num_hidden_layers=5)
    report = run(model, text_file, Stage(("sublayer",), Budget(0.6), allocation=Influence(per="block"))).report
    assert model.config.num_hidden_layers == len(model.model.layers) == 3
    assert report.sparsity == pytest.approx(0.4)


@pytest.mark.parametrize("lazy", [True, False])
def test_progressive_removal_takes_what_matters_least_for_its_size_again_and_again(lazy: bool, text_file: Path) -> None:
    """Against the search written down plainly: all branches that are left are tried in every round."""
    model = tiny_model(num_hidden_layers=4)
    search = Search(Progressive(lazy=lazy), text=Calibration("self", samples=4, length=24))
    report = run(model, text_file, Stage(("sublayer",), Budget(0.5), allocation=Influence(), search=search)).report
    (found,), (shares,) = report.searches, report.allocation
    rounds = sum(share > 0 for share in shares.values())
    plain = 4 * sum(8 - index for index in range(rounds))
    assert found.block_passes < (0.6 if lazy else 1.0) * plain
    assert found.questions <= 2 + plain // 4 + 1


def questions_of(strategy: Progressive, value: Callable[[Sequence[int]], float]) -> list[list[int]]:
    """What is gone in every candidate that is asked for, of 8 blocks with an attention and a larger MLP; the last is the answer."""
    sites = describe(tiny_model(num_hidden_layers=8)).sites("sublayer")
    space = Space(sites, (0.0, 1.0), Budget(0.6))

    def valued(queries: Sequence[Query]) -> list[Trial]:
        return [Trial(query.candidate, float(value([index for index, level in enumerate(query.candidate) if level]))) for query in queries]

    first = space.nearest({site.name: float(site.block < 5) for site in sites})
    outcome = search(space, strategy, valued, first, float("inf"))
    return [[index for index, level in enumerate(trial.candidate) if level] for trial in outcome.trials]


@pytest.mark.parametrize("denominator", ["none", "weights"])
@pytest.mark.parametrize("seed", range(5))
def test_lazy_removal_takes_what_the_whole_search_takes_where_impacts_grow(denominator: Any, seed: int) -> None:
    costs = torch.rand(16, 16, generator=torch.Generator().manual_seed(seed))

    def value(gone: Sequence[int]) -> float:
        return float(costs.diagonal()[list(gone)].sum() + 0.05 * costs[list(gone)][:, list(gone)].sum())

    lazy, plain = (questions_of(Progressive(lazy=lazy, denominator=denominator), value) for lazy in (True, False))
    assert lazy[-1] == plain[-1]
    assert len(lazy) < 0.8 * len(plain)
    assert len(questions_of(Progressive(progressive=False), value)) == 1 + 1 + 16 + 1  # where it begins, dense, each alone, the answer


@pytest.mark.parametrize("seed", range(10))
def test_lazy_removal_sees_that_the_rest_of_a_block_matters_less_once_a_branch_has_gone(seed: int) -> None:
    """Impacts that grow a little or fall by up to a third, and in a block that has lost a branch by up to nine tenths."""
    draw = torch.Generator().manual_seed(seed)
    costs, joint = 0.02 * (1 + torch.rand(16, generator=draw)), torch.rand(8, generator=draw)
    pairs = 0.0005 * (2 * torch.rand(16, 16, generator=draw) - 1)

    def value(gone: Sequence[int]) -> float:
        both = [block for block in range(8) if {2 * block, 2 * block + 1} <= set(gone)]
        saved = sum(0.9 * float(joint[block] * costs[2 * block : 2 * block + 2].min()) for block in both)
        return float(costs[list(gone)].sum() + pairs[list(gone)][:, list(gone)].sum()) - saved

    lazy, plain = (questions_of(Progressive(lazy=lazy, denominator="none"), value) for lazy in (True, False))
    assert lazy[-1] == plain[-1]
    assert len(lazy) < len(plain)


def test_protected_blocks_and_kinds_are_left_alone() -> None:
    sites = branches_of(tiny_model(num_hidden_layers=8))
    gone = questions_of(Progressive(protected=1), len)[-1]
    assert {sites[index].block for index in gone} <= set(range(1, 7))
    with pytest.raises(RecipeError, match="may go, and the budget wants"):
        questions_of(Progressive(only="attention", protected=1), len)


def test_bernoulli_finds_more_than_random_draws_where_branches_are_there_or_not() -> None:
    """At 100 looks, from the same first answer; costs that add up, and some for pairs."""
    sites = describe(tiny_model(num_hidden_layers=12)).sites("sublayer")
    space = Space(sites, (0.0, 1.0), Budget(0.75))
    first = space.nearest({site.name: float(site.block in (3, 4, 5)) for site in sites})
    found: dict[str, list[float]] = {}
    for seed in range(5):
        costs = torch.rand(24, 24, generator=torch.Generator().manual_seed(seed))

        def value(queries: Sequence[Query], costs: torch.Tensor = costs) -> list[Trial]:
            gone = [torch.tensor([float(level) for level in query.candidate]) for query in queries]
            return [Trial(query.candidate, float(costs.diagonal() @ mask + 0.05 * mask @ costs @ mask), query.share)
                    for query, mask in zip(queries, gone, strict=True)]

        for name, strategy in (("bernoulli", Bernoulli()), ("random", Random())):
            found.setdefault(name, []).append(search(space, strategy, value, first, 100.0, seed).best.value)
    assert sum(found["bernoulli"]) < 0.95 * sum(found["random"])


def test_values_that_are_no_numbers_are_the_worst_and_end_nothing() -> None:
    def value(gone: Sequence[int]) -> float:
        return float("inf") if not gone or 2 in gone or len(gone) == 2 else float(len(gone))

    asked = questions_of(Progressive(), value)
    assert 2 not in asked[-1]
    assert len(asked[-1]) >= 6


def test_a_branch_that_does_harm_goes_first_and_of_several_the_largest() -> None:
    """Without 3, 4 and 5 the model is better, and by as much: 3 and 5 are MLPs, which are larger."""
    asked = questions_of(Progressive(lazy=False), lambda gone: float(sum(-0.1 if index in (3, 4, 5) else 1.0 for index in gone)))
    taken = [set.intersection(*(set(gone) for gone in asked[2:] if len(gone) == count + 1)) for count in (1, 2, 3)]
    assert taken == [{3}, {3, 5}, {3, 4, 5}]


@pytest.mark.parametrize("family", CAUSAL)
def test_a_cut_model_answers_with_its_cache_what_it_answers_without(family: str, text_file: Path) -> None:
    """Greedy, from two prompts of which one is padded on the left."""
    model = tiny_model(family, num_hidden_layers=4) if family not in ("gpt2",) else tiny_model(family, n_layer=4)
    run(model, text_file, Stage(("channel",), Budget(0.7), solver=Mask(Magnitude())), BRANCHES)
    prompt, mask = TOKENS[:, :8].clone(), torch.ones(2, 8, dtype=torch.long)
    mask[1, :3] = 0
    settings: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(prompt, use_cache=True, **settings), model.generate(prompt, use_cache=False, **settings))


def test_a_later_stage_prunes_what_an_earlier_one_left_and_the_result_loads(text_file: Path, tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=4)
    stages = (Stage(("channel",), Budget(0.75), solver=Refit()), BRANCHES, Stage(budget=Budget(0.5), solver=SparseGPT()))
    pruned = run(model, text_file, *stages)
    kept = 0.75 * 0.7 * 0.5
    assert 1 - kept - 1e-6 <= pruned.report.sparsity < 1 - kept + 0.15
    save(pruned, tmp_path / "out")
    again = load(tmp_path / "out").model
    assert torch.equal(answers(again), answers(model))
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["parameters"][1] == sum(parameter.numel() for parameter in again.parameters())
    assert f"{data['parameters'][1]:,} of {data['parameters'][0]:,} parameters are left" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_that_is_interrupted_after_a_cut_goes_on_to_the_same_model(text_file: Path, tmp_path: Path) -> None:
    stages = (Stage(("channel",), Budget(0.75), solver=Refit()), BRANCHES, Stage(budget=Budget(0.5), solver=SparseGPT()))
    whole = run(tiny_model(num_hidden_layers=4), text_file, *stages).model

    class Interrupted(Exception):
        pass

    def until(count: int) -> Callable[[Any], None]:
        def watch(progress: Any) -> None:
            nonlocal count
            count -= progress.record is not None
            if count == 0:
                raise Interrupted
        return watch

    for count in (3, 20):  # in the first stage, and in the last
        with pytest.raises(Interrupted):
            run(tiny_model(num_hidden_layers=4), text_file, *stages, resume=tmp_path / "run", watch=until(count))
    resumed = run(tiny_model(num_hidden_layers=4), text_file, *stages, resume=tmp_path / "run").model
    assert {name: value.shape for name, value in resumed.state_dict().items()} == {
        name: value.shape for name, value in whole.state_dict().items()}
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.mark.parametrize("searched", [False, True])
def test_widths_are_multiples_where_it_is_asked_for(searched: bool, text_file: Path) -> None:
    model = tiny_model(num_hidden_layers=3, intermediate_size=64)
    search = Search(Evolution(), evaluations=4.0, text=Calibration("self", samples=4, length=24)) if searched else None
    run(model, text_file, Stage(("channel",), Budget(0.7), solver=Refit(), allocation=OWL(), multiple=16, search=search))
    widths = [layer.mlp.down_proj.weight.shape[1] for layer in model.model.layers]
    assert all(width % 16 == 0 for width in widths)
    assert sum(widths) < 3 * 64
    assert any(layer.self_attn.k_proj.weight.shape[0] < 16 for layer in model.model.layers)


def test_few_groups_of_heads_are_not_rounded_up_where_little_goes(text_file: Path) -> None:
    """Of two groups a tenth is none; the MLPs give what the budget wants. Of two groups, at a half, one goes."""
    for sparsity, groups in ((0.1, 2), (0.5, 1)):
        model = tiny_model(num_hidden_layers=3)
        report = run(model, text_file, Stage(("channel",), Budget(1 - sparsity), solver=Refit())).report
        assert [layer.self_attn.k_proj.weight.shape[0] for layer in model.model.layers] == [8 * groups] * 3
        assert sparsity - 1e-9 <= report.sparsity < sparsity + 0.02


def test_what_would_leave_no_attention_is_refused_and_the_model_is_whole(text_file: Path) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RecipeError, match="leaves no attention, and one must stay"):
        run(model, text_file, Stage(("sublayer",), Budget(0.05), allocation=Influence()))
    assert model.state_dict().keys() == before.keys()
