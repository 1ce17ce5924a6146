"""Who chooses branches and blocks: a run of blocks by angle, a regression on random sub-models, and what a branch saves."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from prunus import pipeline
from prunus.allocation import Denominator
from prunus.allocation.contiguous import Contiguous
from prunus.allocation.influence import Influence
from prunus.anatomy import describe
from prunus.budget import Allocation, Budget
from prunus.calibration import branches
from prunus.calibration.branches import branch_seconds, branch_stats
from prunus.calibration.sample import Calibration
from prunus.errors import RecipeError
from prunus.granularity import Unstructured
from prunus.pipeline import allocate
from prunus.recipe import Recipe, Stage
from prunus.search import search
from prunus.search.plan import Search
from prunus.search.space import Query, Space, Trial
from prunus.search.strategies.progressive import Progressive
from prunus.search.strategies.random import Random
from prunus.search.strategies.regression import Regression
from prunus.sites import SublayerSite
from prunus.surgery.cut import cut, skip
from prunus.surgery.write import module_layout

from ..problems import generator
from ..tiny import CAUSAL, FAMILIES, branches_of, tiny_model, tiny_tokenizer

TOKENS = torch.arange(2 * 20).view(2, 20) * 7 % 256
NORMS_BEHIND = ("gemma2", "gemma3_text", "bert", "roberta", "distilbert")  # they undo a small scale


def deep(family: str = "llama", depth: int = 6) -> Any:
    return tiny_model(family, **{"n_layer" if family == "gpt2" else "n_layers" if family == "distilbert" else "num_hidden_layers": depth})


def contiguous(model: Any, limit: float, sites: Sequence[SublayerSite] = ()) -> Allocation:
    stats, chosen = branch_stats(model, describe(model), TOKENS), sites or branches_of(model)
    measured = {site.name: Contiguous().measure(site, torch.empty(0), stats[site.name], None) for site in chosen}
    return Contiguous().allocate(chosen, measured, Budget(limit), Unstructured())


def blocks_gone(allocation: Allocation, sites: Sequence[SublayerSite]) -> list[int]:
    """Whole blocks; none goes in part."""
    gone = sorted({site.block for site in sites if allocation[site.name] == 1})
    assert all(allocation[site.name] == (site.block in gone) for site in sites)
    return gone


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NORMS_BEHIND])
def test_the_run_of_blocks_that_do_least_goes(family: str) -> None:
    """What the branches of two neighbouring blocks add is made a thousand times smaller."""
    for start in (0, 2, 4):
        model = deep(family)
        for site in branches_of(model):
            if site.block in (start, start + 1):
                for parameter in model.get_submodule(site.output).parameters():
                    parameter.data *= 1e-3
        assert blocks_gone(contiguous(model, 2 / 3), branches_of(model)) == [start, start + 1]


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_the_distance_is_the_angle_between_a_run_s_input_and_output_at_the_last_tokens(length: int) -> None:
    """Against hidden states as transformers gives them, but the last, which it gives behind the final norm."""
    model, last = deep(), []
    model.model.layers[-1].register_forward_hook(lambda module, given, output: last.append(output))
    states = model(input_ids=TOKENS, output_hidden_states=True).hidden_states[:-1]
    states = [state[:, -1] for state in (*states, last[0] if isinstance(last[0], torch.Tensor) else last[0][0])]
    angles = [float((torch.cosine_similarity(states[start], states[start + length], dim=-1).arccos() / math.pi).mean())
              for start in range(7 - length)]
    start = angles.index(min(angles))
    assert blocks_gone(contiguous(model, 1 - length / 6), branches_of(model)) == list(range(start, start + length))
    stats = branch_stats(model, describe(model), TOKENS)
    for depth, block in enumerate(describe(model).blocks):
        for site in block.branches:
            assert torch.allclose(stats[site.name].entry, torch.nn.functional.normalize(states[depth], dim=-1), atol=1e-5)
            assert torch.allclose(stats[site.name].exit, torch.nn.functional.normalize(states[depth + 1], dim=-1), atol=1e-5)


def angled(degrees: Sequence[float]) -> list[torch.Tensor]:
    return [torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]]) for angle in degrees]


def test_from_every_start_the_shortest_run_that_meets_the_budget_is_compared() -> None:
    """Of 1000 weights 400 must go: from the first block on that takes three, from the third only one."""
    sizes, states = (100, 200, 400, 100, 200), angled([0, 10, 30, 60, 65, 66])
    sites = [SublayerSite(f"{depth}", depth, size, "") for depth, size in enumerate(sizes)]
    measured = {site.name: (states[site.block], states[site.block + 1]) for site in sites}

    def gone(chosen: Sequence[SublayerSite], limit: float) -> list[int]:
        found = Contiguous().allocate(chosen, measured, Budget(limit), Unstructured())
        assert found == Contiguous().allocate(chosen[::-1], measured, Budget(limit), Unstructured())
        return blocks_gone(found, chosen)

    assert gone(sites, 0.6) == [2]  # 30 degrees; from the first it is 60, from the second 50
    assert gone(sites, 0.7) == [3, 4]  # 6 degrees
    assert gone(sites, 1.0) == []
    assert gone([site for site in sites if site.block != 2], 0.5) == [3, 4]  # [0, 1] turns by 30 degrees
    with pytest.raises(RecipeError, match=r"no run of neighbouring blocks meets the budget 0\.4"):
        gone([site for site in sites if site.block != 2], 0.4)


def valued_by(value: Any) -> Any:
    def valued(queries: Sequence[Query]) -> list[Trial]:
        return [Trial(query.candidate, float(value(numpy.array(query.candidate, dtype=float))), query.share) for query in queries]

    return valued


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("per", ["sublayer", "block"])
def test_regression_finds_planted_impacts_to_the_digit(per: Any, seed: int) -> None:
    """Where impacts add up, what goes in every round is what goes when they are known."""
    sites = branches_of(deep(depth=12))
    space, costs = Space(sites, (0.0, 1.0), Budget(0.7)), numpy.random.default_rng(seed).random(24)
    strategy = Regression(masks=80, ridge=0.0, fraction=0.1, per=per)
    outcome = search(space, strategy, valued_by(lambda gone: 3 + costs @ gone), space.nearest(dict.fromkeys((s.name for s in sites), 0.3)),
                     math.inf, seed)
    gone: set[int] = set()
    total = sum(site.size for site in sites)
    while not space.met(tuple(int(index in gone) for index in range(24))):
        before, left = sum(sites[index].size for index in gone), [group for group in space.groups(per) if not gone.issuperset(group)]
        for group in sorted(left, key=lambda group: costs[group].sum()):
            if sum(sites[index].size for index in gone) - before < min(0.1 * total, space.required - before) - 1e-6:
                gone |= set(group)
    assert outcome.trials[-1].candidate == tuple(int(index in gone) for index in range(24))
    assert outcome.trials[-1].share == 1


def test_regression_recovers_impacts_from_enough_sub_models_and_not_from_fewer_than_groups() -> None:
    from prunus.search.strategies.regression import _regressed

    rng = numpy.random.default_rng(0)
    gone, impacts = (rng.random((60, 20)) < 0.2).astype(float), rng.random(20)
    assert numpy.abs(_regressed(gone, gone @ impacts, 0.0) - impacts).max() < 1e-12
    assert numpy.abs(_regressed(gone[:10], gone[:10] @ impacts, 0.0) - impacts).max() > 0.01
    damped = gone.T @ gone + 0.1 * numpy.square(gone).sum() / 20 * numpy.eye(20)
    assert numpy.abs(_regressed(gone, gone @ impacts, 0.1) - numpy.linalg.solve(damped, gone.T @ gone @ impacts)).max() < 1e-12


def test_regression_finds_more_than_random_draws_at_as_many_looks() -> None:
    """From the same first answer; costs that add up, and some for pairs."""
    sites = branches_of(deep(depth=12))
    space = Space(sites, (0.0, 1.0), Budget(0.75))
    first = space.nearest({site.name: float(site.block in (3, 4, 5)) for site in sites})
    found: dict[str, list[float]] = {}
    for seed in range(5):
        costs = torch.rand(24, 24, generator=generator(seed)).numpy()
        value = valued_by(lambda gone, costs=costs: costs.diagonal() @ gone + 0.05 * gone @ costs @ gone)
        regressed = search(space, Regression(masks=100), value, first, math.inf, seed)
        found.setdefault("regression", []).append(regressed.best.value)
        found.setdefault("random", []).append(search(space, Random(), value, first, regressed.spent, seed).best.value)
    assert sum(found["regression"]) < 0.9 * sum(found["random"])


def test_regression_draws_as_much_as_a_round_takes_and_oftener_what_the_first_candidate_takes() -> None:
    sites = branches_of(deep(depth=12))
    space = Space(sites, (0.0, 1.0), Budget(0.75))
    first = space.nearest({site.name: float(site.block in (3, 4, 5)) for site in sites})
    strategy = Regression(fraction=0.1)
    state = strategy.tell(strategy.init(space, first, 0), [Trial(first, 1.0)])
    queries = strategy.ask(state)
    assert len(queries) == 201
    assert not any(queries[0].candidate)
    assert all(query.partial and query.share == 0.125 and query.part == 0 for query in queries)
    total, largest = sum(site.size for site in sites), max(site.size for site in sites)
    assert all(0.1 * total <= space.removed(query.candidate) < 0.1 * total + largest for query in queries[1:])
    counts = numpy.array([query.candidate for query in queries[1:]]).sum(0)
    taken = numpy.array(first) == 1
    assert counts[taken].mean() > 2 * counts[~taken].mean()
    assert queries == strategy.ask(state)
    state = strategy.tell(state, [Trial(query.candidate, float(sum(query.candidate))) for query in queries])
    later = strategy.ask(state)
    assert {query.part for query in later} == {1}
    assert all(space.removed(query.candidate) > space.removed(later[0].candidate) >= 0.1 * total for query in later[1:])


def test_what_regression_has_never_seen_gone_goes_last() -> None:
    """One draw: what went in it is known to do harm, and goes all the same."""
    sites = branches_of(deep(depth=4))
    space = Space(sites, (0.0, 1.0), Budget(0.9))
    outcome = search(space, Regression(masks=1, fraction=0.1), valued_by(sum), space.nearest(dict.fromkeys((s.name for s in sites), 0.1)),
                     math.inf)
    assert outcome.trials[2].candidate == outcome.trials[-1].candidate


def test_settings_of_regression_that_cannot_be_meant_are_refused() -> None:
    for settings in ({"masks": 0}, {"share": 0.0}, {"fraction": 0.0}, {"certainty": 1.0}, {"ridge": -1.0}):
        with pytest.raises(RecipeError, match="expected"):
            Regression(**settings)


def order_of(strategy: Progressive, sites: Sequence[SublayerSite], costs: Any, limit: float) -> list[int]:
    """The branches in the order in which they go."""
    space = Space(tuple(sites), (0.0, 1.0), Budget(limit))
    first = space.nearest({site.name: 1 - limit for site in sites})
    trials = search(space, strategy, valued_by(lambda gone: costs @ gone), first, math.inf).trials
    state: list[int] = []
    for count in range(1, len(sites) + 1):
        asked = [set(numpy.flatnonzero(trial.candidate)) for trial in trials[2:] if sum(trial.candidate) == count + 1]
        if not asked:
            return state + sorted(set(numpy.flatnonzero(trials[-1].candidate)) - set(state))
        state += sorted(set.intersection(*asked) - set(state))
    return state


@pytest.mark.parametrize("lazy", [True, False])
def test_per_number_in_the_cache_attentions_go_first_and_then_mlps_until_the_budget_is_met(lazy: bool) -> None:
    """MLPs do no harm at all, attentions do: it is the cache that is to get smaller."""
    sites = branches_of(deep())
    attentions = [index for index, site in enumerate(sites) if site.cached]
    costs = numpy.array([1 + index / 10 if site.cached else index / 1000 for index, site in enumerate(sites)])
    limit = 1 - sum(sites[index].size for index in attentions) / sum(site.size for site in sites) - 0.01
    space = Space(sites, (0.0, 1.0), Budget(limit))
    strategy = Progressive(denominator="cache", lazy=lazy)
    found = search(space, strategy, valued_by(lambda gone: costs @ gone), space.nearest({site.name: 1 - limit for site in sites}), math.inf)
    gone = numpy.flatnonzero(found.trials[-1].candidate).tolist()
    assert gone == sorted([*attentions, 1])  # all attentions, and the MLP that does least
    assert space.met(found.trials[-1].candidate)
    measured = dict(zip((site.name for site in sites), costs.tolist(), strict=True))
    shares = Influence(denominator="cache").allocate(sites, measured, Budget(limit), Unstructured())
    assert [index for index, site in enumerate(sites) if shares[site.name]] == gone
    one = Influence(denominator="cache").allocate(sites, measured, Budget(0.99), Unstructured())
    assert [site.name for site in sites if one[site.name]] == [sites[0].name]


@pytest.mark.parametrize("denominator", ["weights", "latency", "cache"])
def test_of_equal_impacts_the_one_that_saves_most_goes_first(denominator: Denominator) -> None:
    sites = [replace(site, seconds=0.001 * (3 + 7 * index % 5), cached=1 + 5 * index % 7) for index, site in enumerate(branches_of(deep()))]
    saved = {"weights": [s.size for s in sites], "latency": [s.seconds for s in sites], "cache": [s.cached for s in sites]}
    expected = max(range(12), key=lambda index: saved[denominator][index])
    costs = numpy.full(12, 0.1)
    gone = order_of(Progressive(denominator=denominator), sites, costs, 0.99)
    assert gone == [expected]
    shares = Influence(denominator=denominator).allocate(sites, {site.name: 0.1 for site in sites}, Budget(0.99), Unstructured())
    assert [index for index, site in enumerate(sites) if shares[site.name]] == [expected]


@torch.no_grad()
@pytest.mark.parametrize("family", CAUSAL)
def test_what_a_branch_keeps_of_a_token_is_counted_in_the_anatomy_before_and_after_cuts(family: str) -> None:
    def kept(model: Any) -> list[int]:
        cache = model(input_ids=TOKENS[:, :5], use_cache=True).past_key_values
        return [(layer.keys.numel() + layer.values.numel()) // 10 for layer in cache.layers if layer.is_initialized]

    model = deep(family, 4)
    assert kept(model) == [site.cached for site in branches_of(model) if site.cached]
    assert len(kept(model)) == 4
    if family != "gemma3_text":  # a group of one head cannot be asked of every family; the anatomy says which
        channels = [site for site in describe(model).sites("channel") if site.branch == branches_of(model)[0].name]
        mask = torch.ones(channels[0].count, dtype=torch.bool)
        mask[0] = False
        cut(model, describe(model), {channels[0].name: mask})
    skip(model, describe(model), [branches_of(model)[4].name])
    assert kept(model) == [site.cached for site in branches_of(model) if site.cached]
    assert len(kept(model)) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_takes_what_its_block_takes_more_with_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only one branch moves on."""
    model, clock = tiny_model(family), [0.0]
    sites = branches_of(model)
    monkeypatch.setattr(branches, "now", lambda _: clock[0])
    model.get_submodule(sites[2].silent[0].module).register_forward_pre_hook(lambda *_: clock.append(clock.pop() + 0.25))
    seconds = branch_seconds(model, describe(model), TOKENS, repetitions=3)
    assert seconds == {site.name: 0.25 if site == sites[2] else 1e-6 for site in sites}


def recipe_of(text_file: Path, stage: Stage) -> Recipe:
    return Recipe((stage,), Calibration(str(text_file), samples=4, length=24), (), ())


SEARCHED = Search(Progressive(denominator="latency"), text=Calibration("self", samples=4, length=24))


def test_seconds_are_measured_once_and_a_run_that_goes_on_has_the_same(
        text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    times, measured = itertools.count(), []

    def measure(model: Any, anatomy: Any, *_: Any) -> dict[str, float]:
        measured.append({site.name: 10.0 ** ((3 + 2 * next(times)) % 7 - 3) for site in anatomy.sites("sublayer")})
        next(times)
        return measured[-1]

    monkeypatch.setattr(pipeline, "branch_seconds", measure)
    recipe = recipe_of(text_file, Stage(("sublayer",), Budget(0.6), allocation=Influence(denominator="latency"), search=SEARCHED))

    def found(folder: Path | None, watch: Any = None) -> Allocation:
        return allocate(deep(), recipe, tokenizer=tiny_tokenizer(), resume=folder, watch=watch).allocation

    def stop(progress: Any) -> None:
        if progress.done > 5:
            raise Stop

    with pytest.raises(Stop):
        found(tmp_path / "run", stop)
    first = measured[0]
    resumed = found(tmp_path / "run")
    assert len(measured) == 1
    monkeypatch.setattr(pipeline, "branch_seconds", lambda *_: first)
    assert resumed == found(None)
    monkeypatch.setattr(pipeline, "branch_seconds", measure)
    assert resumed != found(None)  # with other seconds other branches go
    with pytest.raises(RecipeError, match="holds another run"):
        allocate(deep(depth=5), recipe, tokenizer=tiny_tokenizer(), resume=tmp_path / "run")


def test_nothing_is_measured_that_nobody_asks_for(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> dict[str, float]:
        raise AssertionError

    monkeypatch.setattr(pipeline, "branch_seconds", measure)
    for denominator in ("none", "weights", "cache"):
        allocate(deep(), recipe_of(text_file, Stage(("sublayer",), Budget(0.8), allocation=Influence(denominator=denominator))),
                 tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_asked_for_seconds_and_those_with_a_cache_for_it(family: str, text_file: Path) -> None:
    stage = Stage(("sublayer",), Budget(0.6), allocation=Influence(denominator="latency"))
    shares = allocate(deep(family, 4), recipe_of(text_file, stage), tokenizer=tiny_tokenizer()).allocation
    assert Budget(0.6).met(branches_of(deep(family, 4)), shares)
    stage = Stage(("sublayer",), Budget(0.9), allocation=Influence(denominator="cache"))
    if family in CAUSAL:
        shares = allocate(deep(family, 4), recipe_of(text_file, stage), tokenizer=tiny_tokenizer()).allocation
        assert all(site.cached for site in branches_of(deep(family, 4)) if shares[site.name])
    else:
        with pytest.raises(RecipeError, match="no site keeps keys and values"):
            allocate(deep(family, 4), recipe_of(text_file, stage), tokenizer=tiny_tokenizer())


def test_seconds_and_the_cache_are_those_of_branches_alone() -> None:
    for denominator in ("latency", "cache"):
        with pytest.raises(RecipeError, match=f"denominator = '{denominator}': known of whole attentions and MLPs alone"):
            Stage(search=Search(Progressive(denominator=denominator)))


def test_a_run_of_blocks_is_left_out_of_the_model(text_file: Path) -> None:
    model = deep()
    recipe = recipe_of(text_file, Stage(("sublayer",), Budget(0.5), allocation=Contiguous()))
    report = pipeline.prune(model, recipe, tokenizer=tiny_tokenizer(), source="tiny").report
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    assert report.sparsity == pytest.approx(0.5)
    assert module_layout(model.model.layers[2].mlp.down_proj, model.model.layers[2].mlp.down_proj.weight).shape == (32, 48)
