"""A candidate's value is the divergence of the model it describes, however it was computed."""

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.choices import Choices
from prunus.errors import RecipeError
from prunus.granularity import Unstructured
from prunus.search import search
from prunus.search.fitness import Bounded, Fitness
from prunus.search.levels import LevelStore
from prunus.search.space import Candidate, Query, Space, Trial
from prunus.search.strategies.evolution import Evolution
from prunus.search.strategies.local import Local
from prunus.search.strategies.random import Random
from prunus.sites import LinearSite
from prunus.solvers.sparsegpt import SparseGPT
from prunus.subnet import subnet

from ..problems import generator
from ..tiny import CAUSAL, tiny_model

LEVELS = (0.0, 0.4, 0.8)
CALIBRATION, TOKENS = (torch.randint(0, 250, (size, 20), generator=generator(size)) for size in (4, 5))
Make = Callable[..., Fitness]


@pytest.fixture
def fitness_of(tmp_path: Path) -> Iterator[Make]:
    """`fitness_of(family, …)`: the service for a tiny model of 3 blocks."""
    made: list[Fitness] = []

    def make(family: str = "llama", **settings: Any) -> Fitness:
        model = tiny_model(family)
        anatomy = describe(model)
        sites = [site for site in anatomy.sites("linear") if isinstance(site, LinearSite)]
        store = LevelStore.build(tmp_path / family, model, anatomy, dict.fromkeys(sites, Unstructured("matrix")), CALIBRATION,
                                 SparseGPT(), LEVELS, family)
        space = Space(tuple(sites), LEVELS, Budget(0.6), tuple(store.entries[site.name].errors for site in sites))
        made.append(Fitness(model, anatomy, space, store, settings.pop("text", TOKENS), **{"top": 10**6, **settings}))
        return made[-1]

    yield make
    for fitness in made:
        fitness.close()


@torch.no_grad()
def by_hand(fitness: Fitness, candidate: Candidate, tokens: Tensor = TOKENS, every: int = 1) -> float:
    """KL(dense || candidate) from whole forward passes of the model, one sequence at a time, at one of `every` positions."""
    model, space = fitness.model, fitness.space
    weights = {f"{site.name}.weight": fitness.store.weight(site.name, level, model.get_submodule(site.name).weight.data)
               for site, level in zip(space.sites, candidate, strict=True)}
    total = 0.0
    for row in tokens:
        dense = model(input_ids=row[None]).logits.double().log_softmax(-1)
        with subnet(model, weights):
            theirs = model(input_ids=row[None]).logits.double().log_softmax(-1)
        total += float((dense.exp() * (dense - theirs))[:, ::every].sum())
    return total / tokens[:, ::every].numel()


def some(space: Space, count: int) -> list[Candidate]:
    rng = random.Random(0)
    return [space.draw(rng) for _ in range(count)]


@pytest.mark.parametrize("family", CAUSAL)
def test_the_value_is_the_divergence_of_the_whole_model_in_every_family(family: str, fitness_of: Make) -> None:
    fitness = fitness_of(family)
    for candidate in some(fitness.space, 3):
        assert fitness([Query(candidate)])[0].value == pytest.approx(by_hand(fitness, candidate), rel=1e-3, abs=1e-6)


def test_the_dense_candidate_has_no_divergence(fitness_of: Make) -> None:
    fitness = fitness_of()
    assert fitness([Query((0,) * len(fitness.space.sites))])[0].value == pytest.approx(0, abs=1e-6)


def test_parts_of_the_text_start_behind_what_is_known_of_the_whole(fitness_of: Make) -> None:
    fitness, plain = fitness_of(), fitness_of(memory=0)
    first = (1,) * len(fitness.space.sites)
    second = (*first[:-1], 2)
    queries = [Query(first), Query(second, 0.2, 3), Query(second, 0.2, 1), Query(second, 0.2, 3), Query(second)]
    assert fitness(queries) == plain(queries)
    assert (fitness.blocks, plain.blocks) == (pytest.approx(2 + 2 * 0.2 + 1), pytest.approx(2 * (2 + 2 * 0.2)))  # known values cost nothing


def test_a_candidate_that_shares_its_first_blocks_with_an_earlier_one_starts_behind_them(fitness_of: Make) -> None:
    fitness, plain = fitness_of(), fitness_of(memory=0)
    first = (1,) * len(fitness.space.sites)
    second = (*first[:-1], 2)
    for service in (fitness, plain):
        service([Query(first)])
    assert (fitness.blocks, plain.blocks) == (2, 2)
    assert fitness([Query(second)]) == plain([Query(second)])
    assert (fitness.blocks, plain.blocks) == (3, 4)


def test_a_share_of_the_text_is_its_first_sequences_or_the_next(fitness_of: Make) -> None:
    fitness = fitness_of()
    (candidate,) = some(fitness.space, 1)
    parts = fitness([Query(candidate, 0.4, part) for part in (1, 2, 3)])  # of 5 sequences, 2 and 2
    assert [trial.value for trial in parts] == pytest.approx(
        [by_hand(fitness, candidate, TOKENS[start : start + 2]) for start in (2, 0, 2)], rel=1e-3)
    found = fitness([Query(candidate, 0.4), Query(candidate, 0.01), Query(candidate, 1.0)])
    expected = [by_hand(fitness, candidate, TOKENS[:count]) for count in (2, 1, 5)]  # whole batches of 1
    assert [trial.value for trial in found] == pytest.approx(expected, rel=1e-3)
    assert [trial.share for trial in found] == [0.4, 0.2, 1.0]  # what was looked at, not what was asked for


def test_a_partial_candidate_is_compared_at_every_fourth_position(fitness_of: Make) -> None:
    fitness = fitness_of()
    (candidate,) = some(fitness.space, 1)
    partial, whole = fitness([Query(candidate, partial=True), Query(candidate)])
    assert partial.value == pytest.approx(by_hand(fitness, candidate, every=4), rel=1e-3)
    assert whole.value == pytest.approx(by_hand(fitness, candidate), rel=1e-3)


@pytest.mark.parametrize("partial", [True, False])
def test_perplexity_is_that_of_the_tokens_that_follow(partial: bool, fitness_of: Make) -> None:
    fitness = fitness_of(objective="perplexity")
    with torch.no_grad():
        logp = fitness.model(input_ids=TOKENS).logits.double().log_softmax(-1)[:, :-1]
    following = -logp.gather(-1, TOKENS[:, 1:, None])[:, :: 4 if partial else 1]
    dense = (0,) * len(fitness.space.sites)
    assert fitness([Query(dense, partial=partial)])[0].value == pytest.approx(float(following.mean()), rel=1e-4)


def test_what_was_valued_is_not_computed_again(fitness_of: Make) -> None:
    fitness = fitness_of(memory=0)
    (candidate,) = some(fitness.space, 1)
    first = fitness([Query(candidate)])
    spent = fitness.blocks
    assert fitness([Query(candidate)]) == first
    assert fitness.blocks == spent


def test_what_is_forgotten_is_computed_again_with_the_same_value(fitness_of: Make) -> None:
    fitness = fitness_of()
    (candidate,) = some(fitness.space, 1)
    first = fitness([Query(candidate)])
    spent = fitness.blocks
    fitness.forget()
    assert fitness([Query(candidate)]) == first
    assert fitness.blocks == 2 * spent


def test_fewer_tokens_of_the_dense_distribution_give_a_lower_bound(fitness_of: Make) -> None:
    whole, coarse = fitness_of(), fitness_of(top=16)
    for candidate in some(whole.space, 3):
        (full,), (bound,) = whole([Query(candidate)]), coarse([Query(candidate)])
        assert 0.3 * full.value < bound.value <= full.value * (1 + 1e-5)


def test_a_value_that_is_no_number_is_counted_and_loses(fitness_of: Make) -> None:
    fitness = fitness_of()
    real = fitness.store.weight
    candidate, other = some(fitness.space, 2)
    broken = fitness.space.sites[3].name
    object.__setattr__(fitness.store, "weight", lambda site, level, dense: torch.full_like(dense, math.nan) if site == broken
                       else real(site, level, dense))
    assert fitness([Query(candidate)])[0].value == math.inf
    assert fitness.discarded == 1
    assert other != candidate


def test_an_interrupted_search_goes_on_with_the_same_trajectory(fitness_of: Make, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    whole = fitness_of(log=tmp_path / "other.jsonl")
    first = whole.space.nearest(dict.fromkeys((site.name for site in whole.space.sites), 0.4))
    expected = search(whole.space, Evolution(offspring=4, survivors=(2, 1)), whole, first, 12.0, seed=5)

    stopped = fitness_of(log=log)

    def interrupted(queries: Any) -> list[Trial]:
        if stopped.blocks > 6:
            raise KeyboardInterrupt
        return stopped(queries)

    with pytest.raises(KeyboardInterrupt):
        search(stopped.space, Evolution(offspring=4, survivors=(2, 1)), interrupted, first, 12.0, seed=5)
    with log.open("a") as file:
        file.write('{"candidate": [1, 2')  # killed while writing
    resumed = fitness_of(log=log)
    found = search(resumed.space, Evolution(offspring=4, survivors=(2, 1)), resumed, first, 12.0, seed=5)
    assert found == expected
    assert resumed.blocks < whole.blocks
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_a_log_of_another_search_is_refused(fitness_of: Make, tmp_path: Path) -> None:
    fitness_of(log=tmp_path / "trials.jsonl", identity="one")
    with pytest.raises(RecipeError, match="holds the trials of another search"):
        fitness_of(log=tmp_path / "trials.jsonl", identity="two")


def test_a_damaged_log_is_refused_with_its_line(fitness_of: Make, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    fitness = fitness_of(log=log)
    fitness([Query(candidate) for candidate in some(fitness.space, 3)])
    lines = log.read_text().splitlines(keepends=True)
    for broken, message in ((["", *lines[1:]], "holds the trials of another"), ([*lines[:2], "{}\n", *lines[3:]], "line 3: is no trial"),
                            ([*lines[:3], "\x00\n"], "line 4: is no trial")):
        log.write_text("".join(broken))
        with pytest.raises(RecipeError, match=message):
            fitness_of(log=log)


@pytest.mark.parametrize("strategy", [Evolution(offspring=6), Local(), Random()], ids=["evolution", "local", "random"])
def test_a_search_finds_better_than_it_was_given(strategy: Any, fitness_of: Make) -> None:
    fitness = fitness_of()
    first = fitness.space.nearest(dict.fromkeys((site.name for site in fitness.space.sites), 0.4))
    told: list[tuple[float, float]] = []

    def watch(spent: float, best: Trial) -> bool:
        told.append((spent, best.value))
        return True

    outcome = search(fitness.space, strategy, fitness, first, 40.0, watch=watch)
    assert outcome.best.value <= outcome.trials[0].value
    assert fitness.space.met(outcome.best.candidate)
    assert told[-1] == (40, outcome.best.value)
    assert [best for _, best in told] == sorted((best for _, best in told), reverse=True)


def test_a_search_that_may_spend_nothing_or_finds_nothing_is_refused(fitness_of: Make) -> None:
    fitness = fitness_of()
    first = some(fitness.space, 1)[0]
    with pytest.raises(RecipeError, match="evaluations = 0: expected more than 0"):
        search(fitness.space, Random(), fitness, first, 0.0)
    with pytest.raises(RecipeError, match="none of 1 candidates has a value"):
        search(fitness.space, Random(), lambda queries: [Trial(query.candidate, math.inf) for query in queries], first, 1.0)


def test_what_is_kept_stays_within_its_bytes_and_the_oldest_goes_first() -> None:
    kept = Bounded(100)
    for index in range(4):
        kept.put(index, torch.zeros(8))
        kept.get(0)
    assert kept.bytes == 96
    assert [kept.get(index) is not None for index in range(4)] == [True, False, True, True]
    kept.put(5, torch.zeros(1000))
    assert kept.bytes == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_perplexity_is_that_of_the_text_and_the_dense_model_s_is_known(fitness_of: Make, batch: int) -> None:
    fitness = fitness_of(objective="perplexity", batch=batch)
    model, candidate = fitness.model, (1,) * len(fitness.space.sites)

    def loss() -> float:
        with torch.no_grad():
            return float(model(input_ids=TOKENS, labels=TOKENS).loss)

    assert fitness.dense == pytest.approx(loss(), rel=1e-5)
    (trial,) = fitness([Query(candidate)])
    weights = {f"{site.name}.weight": fitness.store.weight(site.name, 1, model.get_submodule(site.name).weight.data)
               for site in fitness.space.sites}
    with subnet(model, weights):
        assert trial.value == pytest.approx(loss(), rel=1e-5)
    assert trial.value != pytest.approx(fitness.dense, rel=1e-3)


CHOICES = Choices(torch.randint(0, 250, (12, 9), generator=generator(12)),
                  torch.arange(9).expand(12, 9) >= torch.tensor([5, 6, 7] * 4)[:, None], torch.tensor([0, 1, 2, 1]), 3)
CHOICES.chosen[5] = False  # the second example has two choices


@torch.no_grad()
def wrong(fitness: Fitness, candidate: Candidate, examples: range) -> float:
    """The share of examples whose choice of the largest log-likelihood is not the right one, from whole forward passes."""
    weights = {f"{site.name}.weight": fitness.store.weight(site.name, level, fitness.model.get_submodule(site.name).weight.data)
               for site, level in zip(fitness.space.sites, candidate, strict=True)}
    count = 0
    for example in examples:
        found = []
        for row in range(3 * example, 3 * example + 3):
            tokens, chosen = CHOICES.tokens[row], CHOICES.chosen[row]
            with subnet(fitness.model, weights):
                logp = fitness.model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
            found.append(sum(float(logp[at - 1, tokens[at]]) for at in range(1, 9) if chosen[at]) if chosen.any() else -math.inf)
        count += found.index(max(found)) != int(CHOICES.answers[example])
    return count / len(examples)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_accuracy_is_the_share_of_examples_that_are_answered_wrongly(family: str, fitness_of: Make) -> None:
    fitness = fitness_of(family, text=CHOICES, objective="accuracy")
    dense = (0,) * len(fitness.space.sites)
    assert fitness.dense == wrong(fitness, dense, range(4))
    for candidate in (dense, *some(fitness.space, 4)):
        whole, part, partial = fitness([Query(candidate), Query(candidate, 0.25, 2), Query(candidate, partial=True)])
        assert whole.value == partial.value == wrong(fitness, candidate, range(4))
        assert (part.value, part.share) == (wrong(fitness, candidate, range(2, 3)), 0.25)


def test_what_the_dense_model_predicts_is_read_back_from_disk(fitness_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"folder": tmp_path / "dense", "identity": "a", "top": 16}
    first = fitness_of(**kept)
    queries = [Query(candidate, partial=partial) for candidate in some(first.space, 2) for partial in (False, True)]
    expected = first(queries)
    monkeypatch.setattr(Fitness, "_through_dense", lambda self: pytest.fail("the dense model was run"))
    assert fitness_of(**kept)(queries) == expected
    monkeypatch.undo()
    (file,) = (tmp_path / "dense").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    passed: list[int] = []
    real = Fitness._through_dense
    monkeypatch.setattr(Fitness, "_through_dense", lambda self: passed.append(1) or real(self))
    assert fitness_of(**kept)(queries) == expected
    assert fitness_of(**{**kept, "identity": "b"})(queries) == expected
    assert len(passed) == 2
