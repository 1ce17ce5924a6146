"""Learned masks: which channels go is learned from values alone, and always as many as an allocation takes."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from prunus.allocation import columns_of
from prunus.anatomy import describe
from prunus.criteria.wanda import Wanda
from prunus.errors import RecipeError
from prunus.granularity import keep_mask
from prunus.search import search
from prunus.search.channels import ChannelSpace
from prunus.search.fitness import Fitness
from prunus.search.policy import drawn, slope
from prunus.search.space import Array, Query, Trial
from prunus.search.strategies.masks import Masks, advantages
from prunus.sites import ChannelSite
from prunus.surgery.write import module_layout

from ..problems import generator
from ..tiny import CAUSAL, tiny_model

TOKENS = torch.randint(0, 250, (5, 20), generator=generator(5))


def sites(*counts: int, branch: str = "mlp", width: int = 1, multiple: int = 1) -> tuple[ChannelSite, ...]:
    return tuple(ChannelSite(f"blocks.{index}.{branch}.channels", index, count, f"blocks.{index}.{branch}.down", width, (),
                             100 * width * count, multiple=multiple) for index, count in enumerate(counts))


def space_of(seed: int = 0) -> ChannelSpace:
    """Two attentions of 3 groups and two MLPs of 24 and 32 channels; a third of each goes, and a quarter of the last."""
    rng = numpy.random.default_rng(seed)
    ours = (*sites(3, 3, branch="attention", width=8), *sites(24, 32))
    return ChannelSpace(ours, tuple(rng.random(site.count) for site in ours), (1, 1, 8, 8))


def going_of(space: ChannelSpace, candidate: tuple[int, ...]) -> Array:
    """1 for every channel that goes, site after site."""
    return numpy.concatenate([(~space.kept(candidate, index)).double().numpy() for index in range(len(space.sites))])


def test_projected_probabilities_are_the_nearest_that_let_as_many_of_each_kind_go_as_must() -> None:
    space, rng = space_of(), numpy.random.default_rng(1)
    for _ in range(5):
        wanted = rng.normal(0.3, 0.5, 62)
        found = space.projected(wanted)
        assert found[:6].sum() == pytest.approx(2)
        assert found[6:].sum() == pytest.approx(16)
        assert (found >= 0).all()
        assert (found <= 1).all()
        for _ in range(20):  # any other probabilities that meet the budget are further away
            other = space.projected(found + rng.normal(0, 0.1, 62))
            assert ((other - wanted) ** 2).sum() >= ((found - wanted) ** 2).sum() - 1e-9


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("steepness", [0.3, 1.0, 4.0])
def test_before_anything_is_learned_the_answer_is_the_criterion_s_own_mask(multiple: int, steepness: float) -> None:
    model = tiny_model(intermediate_size=64)
    ours = [site for site in describe(model).sites("channel") if isinstance(site, ChannelSite)]
    ours = [replace(site, multiple=multiple) if site.width == 1 else site for site in ours]
    shares = {site.name: (0.5, 0.5, 0.25, 0.125)[index] for index, site in enumerate(ours)}
    space = ChannelSpace.build(ours, shares, Wanda(), model, describe(model), TOKENS, {})
    going = space.leaning(steepness)
    state = Masks(steepness=steepness).init(space, space.first, 0)
    assert Masks(steepness=steepness).ask(state) == [Query(space.first)]
    edges = numpy.cumsum([site.count for site in ours])
    for part, scores in zip(numpy.split(going, edges[:-1]), space.scores, strict=True):
        assert (numpy.argsort(-part) == numpy.argsort(scores)).all()
    for index, (site, scores) in enumerate(zip(ours, space.scores, strict=True)):
        mask = keep_mask(torch.tensor(scores)[None].repeat_interleave(site.width, 1), shares[site.name], columns_of(site))[0]
        assert torch.equal(space.kept(space.first, index), mask[:: site.width].bool())


def test_scores_are_a_criterion_s_over_whole_channels_in_the_dense_model() -> None:
    model = tiny_model()
    ours = [site for site in describe(model).sites("channel") if isinstance(site, ChannelSite)]
    space = ChannelSpace.build(ours, dict.fromkeys((site.name for site in ours), 0.5), Wanda(), model, describe(model), TOKENS, {})
    seen: dict[str, torch.Tensor] = {}
    for site in ours:
        model.get_submodule(site.consumer).register_forward_pre_hook(
            lambda _, given, name=site.name: seen.__setitem__(name, given[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=TOKENS)
    for site, scores in zip(ours, space.scores, strict=True):
        weight = model.get_submodule(site.consumer).weight.detach()
        columns = (weight.abs() * seen[site.name].square().mean(0).sqrt()).sum(0)
        assert scores == pytest.approx(columns.view(site.count, site.width).sum(1).numpy(), rel=1e-4)


def test_an_answer_takes_the_surest_and_leaves_multiples() -> None:
    rng = numpy.random.default_rng(0)
    plain = ChannelSpace(sites(20, 24), (rng.random(20), rng.random(24)), (4, 8))
    going = rng.random(44)
    gone = going_of(plain, plain.answer(going))
    assert gone.sum() == 12
    assert going[gone == 1].min() > going[gone == 0].max()
    whole = ChannelSpace(sites(20, 24, multiple=8), plain.scores, (4, 8))
    for seed in range(10):
        going = numpy.random.default_rng(seed).random(44)
        answer = whole.answer(going)
        shares = whole.allocation(answer)
        for index, site in enumerate(whole.sites):
            stay = round((1 - shares[site.name]) * site.count)
            assert stay % 8 == 0 or stay == site.count
            part = numpy.split(going, [20])[index]
            gone = going_of(whole, answer)[[slice(0, 20), slice(20, 44)][index]]
            assert part[gone == 1].min(initial=2) > part[gone == 0].max(initial=-1)
            assert columns_of(site).removed(shares[site.name], site.count) == site.count - stay
        assert whole.removed(answer) >= whole.removed(whole.first) == 1200


def test_a_candidate_is_written_as_bits_and_read_back() -> None:
    space, rng = space_of(), numpy.random.default_rng(3)
    marks = set()
    for _ in range(50):
        goes = (rng.random(62) < 0.3).astype(float)
        candidate = space.candidate(goes)
        assert (going_of(space, candidate) == goes).all()
        assert space.removed(candidate) == pytest.approx(800 * goes[:6].sum() + 100 * goes[6:].sum())
        assert sum(space.allocation(candidate)[site.name] * site.count for site in space.sites) == pytest.approx(goes.sum())
        marks.add(space.mark(candidate))
    assert len(marks) == 50
    assert {len(mark) for mark in marks} == {16}


def test_draws_go_with_their_probabilities_and_pairs_of_them_are_antithetic() -> None:
    going = numpy.array([0.0, 0.1, 0.5, 0.8, 1.0])
    draws = drawn(going, 20_000, numpy.random.default_rng(0))
    assert draws.mean(0) == pytest.approx(going, abs=0.01)
    both = (draws[:10_000] * draws[10_000:]).mean(0)
    assert both == pytest.approx(numpy.maximum(2 * going - 1, 0), abs=0.01)


def test_the_estimate_has_no_bias() -> None:
    """3 channels and 2 antithetic pairs: the mean over all outcomes is the slope of the expected value, found by enumeration."""
    going = numpy.array([0.2, 0.55, 0.7])
    values = dict(zip(itertools.product((0.0, 1.0), repeat=3), numpy.random.default_rng(0).normal(3, 2, 8), strict=True))

    def chance(draw: tuple[float, ...], probabilities: Array) -> float:
        return float(numpy.prod([share if goes else 1 - share for goes, share in zip(draw, probabilities, strict=True)]))

    def expected(probabilities: Array) -> float:
        return sum(chance(draw, probabilities) * value for draw, value in values.items())

    outcomes = [[((1.0, 0.0), min(share, 1 - share)), ((0.0, 1.0), min(share, 1 - share)),  # one goes, the other, both or none
                 ((float(share > 0.5),) * 2, abs(2 * share - 1))] for share in going]
    mean = numpy.zeros(3)
    for first, second in itertools.product(itertools.product(*outcomes), repeat=2):
        pairs = [[[unit[0][side] for unit in pair] for side in (0, 1)] for pair in (first, second)]
        draws = numpy.array([pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]])  # as `drawn` orders them
        found = numpy.array([values[tuple(draw)] for draw in draws.tolist()])
        mean += slope(going, draws, advantages(found)) * numpy.prod([unit[1] for unit in (*first, *second)])
    scale = going * (1 - going) / numpy.sqrt((going + 1e-3) * (1 - going + 1e-3))
    for unit in range(3):
        step = numpy.eye(3)[unit] * 1e-3
        exact = (expected(going + step) - expected(going - step)) / 2e-3
        assert mean[unit] == pytest.approx(exact * scale[unit], rel=1e-6)


def test_masks_find_the_channels_that_cost_nothing() -> None:
    """A third of the channels cost nothing, the others something; the criterion knows nothing of it."""
    space = space_of()
    free = numpy.zeros(62)
    for start, stop, count in ((0, 6, 2), (6, 62, 16)):
        free[random.Random(start).sample(range(start, stop), count)] = 1
    costs = (1 - free) * numpy.random.default_rng(1).uniform(0.5, 1.5, 62)

    def value(queries: list[Query]) -> list[Trial]:
        return [Trial(query.candidate, float(costs @ going_of(space, query.candidate)), query.share) for query in queries]

    outcome = search(space, Masks(rate=0.05), value, space.first, 400.0)
    assert outcome.trials[0].candidate == space.first
    assert outcome.best.value < 0.1 * outcome.trials[0].value
    assert (going_of(space, outcome.best.candidate) == free).sum() >= 58
    assert outcome == search(space, Masks(rate=0.05), value, space.first, 400.0)
    assert outcome.trials != search(space, Masks(rate=0.05), value, space.first, 400.0, seed=1).trials


@pytest.mark.parametrize("family", CAUSAL)
def test_a_mask_is_valued_as_the_model_without_its_channels(family: str) -> None:
    """Grouped queries and fused matrices too: against the model in which the columns are zeroed by hand."""
    model, other = tiny_model(family), tiny_model(family)
    anatomy = describe(model)
    ours = [site for site in anatomy.sites("channel") if isinstance(site, ChannelSite)]
    space = ChannelSpace.build(ours, dict.fromkeys((site.name for site in ours), 0.5), Wanda(), model, anatomy, TOKENS, {})
    fitness = Fitness(model, anatomy, space, None, TOKENS, top=10**6, memory=0)
    for site in ours:
        module = other.get_submodule(site.consumer)
        module_layout(module, module.weight.data).mul_(space.rankings(space.first)[site.name])
    with torch.no_grad():
        dense, masked = (of(input_ids=TOKENS).logits.double().log_softmax(-1) for of in (model, other))
    expected = float((dense.exp() * (dense - masked)).sum(-1).mean())
    assert fitness([Query(space.first)])[0].value == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert fitness([Query((0,) * len(ours))])[0].value == pytest.approx(0, abs=1e-6)
    with torch.no_grad():  # and nothing of it stays
        assert torch.equal(model(input_ids=TOKENS).logits.double().log_softmax(-1), dense)


def test_the_log_of_masks_is_short_and_read_back(tmp_path: Path) -> None:
    model = tiny_model(intermediate_size=512)
    ours = [site for site in describe(model).sites("channel") if isinstance(site, ChannelSite)]
    space = ChannelSpace.build(ours, dict.fromkeys((site.name for site in ours), 0.5), Wanda(), model, describe(model), TOKENS, {})
    queries = [Query(space.first), Query(space.answer(space.leaning(1.0)[::-1]), 0.4, 1, partial=True)]
    log = tmp_path / "trials.jsonl"
    first = Fitness(model, describe(model), space, None, TOKENS, log=log)
    found = first(queries)
    lines = log.read_text().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) < 200
    assert json.loads(lines[1])["gone"] == space.removed(space.first)
    again = Fitness(model, describe(model), space, None, TOKENS, log=log)
    assert again(queries) == found
    assert again.blocks == 0


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings in ({"population": 2}, {"population": 7}, {"share": 0.0}, {"answers": 0}):
        with pytest.raises(RecipeError, match="expected an even number of at least 4 draws"):
            Masks(**settings)
    for settings in ({"rate": 0.0}, {"steepness": -1.0}):
        with pytest.raises(RecipeError, match="expected numbers above 0"):
            Masks(**settings)
