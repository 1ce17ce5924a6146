"""The laws that every search strategy obeys, on objectives that are known."""

import itertools
import math
import statistics
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from prunus.budget import Budget
from prunus.errors import MissingExtra, RecipeError
from prunus.lookup import find, names
from prunus.search import search
from prunus.search.space import Candidate, Query, Space, Trial
from prunus.search.strategies.cmaes import CMAES
from prunus.search.strategies.dynamic import Dynamic
from prunus.search.strategies.evolution import Evolution
from prunus.search.strategies.ppo import PPO
from prunus.search.strategies.reinforce import Reinforce
from prunus.sites import LinearSite

# One that comes to an end of its own, whatever the number of questions, has its laws in tests/pipeline; `regression` comes late enough.
# One that chooses channels, and no levels, has them in tests/unit/test_masks.py.
STRATEGIES = [name for name in names("search.strategies")
              if not any(getattr(find("search.strategies", name), mark, False) for mark in ("ends", "per_channel"))]
every_strategy = pytest.mark.parametrize("strategy", [pytest.param(find("search.strategies", name)(), id=name)
                                                      for name in (*STRATEGIES, "regression")])
AGENTS = ("ddpg", "ppo", "sac")  # they learn, and need more questions for that than others need to find
LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9)
SITES = tuple(LinearSite(f"layers.{index}", index, (4 + 4 * (index % 3), 25), f"layers.{index}.input") for index in range(9))
COSTS = [[(1 + index) * level**2 for level in LEVELS] for index in range(len(SITES))]
SPACE = Space(SITES, LEVELS, Budget(0.5), tuple(tuple(row) for row in COSTS))
FIRST = SPACE.nearest(dict.fromkeys((site.name for site in SITES), 0.5))


def cost(candidate: Candidate) -> float:
    """Sites differ in what they bear: the best candidate takes most from the first ones."""
    return sum(row[level] for row, level in zip(COSTS, candidate, strict=True))


def run(strategy: Any, questions: int, seed: int = 0, value: Callable[[Query], float] = lambda query: cost(query.candidate),
        first: Candidate = FIRST) -> list[Trial]:
    state, asked = strategy.init(SPACE, first, seed), []
    while len(asked) < questions:
        queries = strategy.ask(state)
        assert queries
        assert all(query.partial or SPACE.met(query.candidate) for query in queries)
        trials = [Trial(query.candidate, value(query), query.share) for query in queries]
        state = strategy.tell(state, trials)
        asked += trials
    return asked[:questions]


@every_strategy
def test_every_question_meets_the_budget_unless_it_is_partial(strategy: Any) -> None:
    for trial in run(strategy, 60):  # which asserts it
        assert len(trial.candidate) == len(SITES)
        assert 0 < trial.share <= 1


@every_strategy
def test_the_first_question_is_the_candidate_to_improve_on_the_whole_text(strategy: Any) -> None:
    assert run(strategy, 1) == [Trial(FIRST, cost(FIRST), 1.0)]


@every_strategy
def test_equal_seeds_ask_the_same_and_others_do_not(strategy: Any) -> None:
    assert run(strategy, 60, seed=3) == run(strategy, 60, seed=3)
    assert run(strategy, 60, seed=3) != run(strategy, 60, seed=4)


@every_strategy
def test_values_that_are_no_numbers_do_not_stop_a_search(strategy: Any) -> None:
    assert len(run(strategy, 40, value=lambda query: math.inf)) == 40
    assert len(run(strategy, 40, value=lambda query: math.inf if query.candidate == FIRST else 1.0)) == 40


# bernoulli knows the first and the last level only, and is compared where there are no others, in tests/pipeline/test_whole.py
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("random", "bernoulli", *AGENTS)])
def test_better_than_random_at_equal_questions(name: str) -> None:
    strategy = find("search.strategies", name)()
    found = [min(trial.value for trial in run(strategy, 150, seed) if trial.share == 1) for seed in range(5)]
    drawn = [min(trial.value for trial in run(find("search.strategies", "random")(), 150, seed)) for seed in range(5)]
    assert sum(found) < sum(drawn)
    assert max(found) < cost(FIRST)


def test_an_agent_s_later_episodes_are_better_than_its_first() -> None:
    """The mean value of the last 20 whole candidates, of 100 episodes of 9 moves. The others need many times as many."""
    whole = [trial.value for trial in run(PPO(episodes=4, deviation=1.0, share=1.0), 901) if SPACE.met(trial.candidate)][1:]
    assert len(whole) >= 90
    assert statistics.fmean(whole[-20:]) < 0.97 * statistics.fmean(whole[:20])


def test_an_agent_looks_at_part_of_the_text_and_at_all_of_it_for_its_best_episodes() -> None:
    """Every episode whose value is the lowest so far is valued on the whole text next, once."""
    trials = run(PPO(share=0.25, reward="terminal"), 60)[1:]
    best = math.inf
    for one, other in itertools.pairwise(trials):
        if one.share < 1:
            assert (other.share == 1) == (one.value < best)
            best = min(best, one.value)
            if other.share == 1:
                assert other.candidate == one.candidate


def test_a_game_that_cannot_be_played_is_refused() -> None:
    for settings in ({"share": 0.0}, {"share": 1.5}, {"width": 0.0}, {"scale": 0.0}):
        with pytest.raises(RecipeError, match=r"expected a share of the search text"):
            PPO(**settings)


def test_reinforce_draws_pairs_that_depart_to_both_sides_and_then_values_its_policy() -> None:
    """One update: 8 draws on an eighth of the text, then the mean on all of it; the next ones look at the next eighth."""
    strategy = Reinforce(population=8, per="matrix")
    state = strategy.tell(strategy.init(SPACE, FIRST, 0), [Trial(FIRST, cost(FIRST))])
    draws = strategy.ask(state)
    assert [(query.share, query.part) for query in draws] == [(0.125, 0)] * 8
    assert (state.draws[:4] == -state.draws[4:]).all()
    state = strategy.tell(state, [Trial(query.candidate, cost(query.candidate), query.share) for query in draws])
    (whole,) = strategy.ask(state)
    assert whole.share == 1
    state = strategy.tell(state, [Trial(whole.candidate, cost(whole.candidate))])
    assert {query.part for query in strategy.ask(state)} == {1}


def test_reinforce_moves_towards_what_did_well() -> None:
    """Values fall with the first site's share: after some updates the policy gives it more than the others."""
    strategy = Reinforce(per="matrix")
    state = strategy.init(SPACE, FIRST, 0)
    for _ in range(20):
        state = strategy.tell(state, [Trial(query.candidate, -LEVELS[query.candidate[0]], query.share) for query in strategy.ask(state)])
    assert state.mean.argmax() == 0
    assert state.mean.mean() == pytest.approx(0, abs=1e-12)


def test_an_agent_leaves_the_generators_of_others_alone() -> None:
    """Python's own generator is exchanged too, but the type checker of the tests draws from it."""
    states = numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    run(PPO(), 60)
    assert numpy.random.get_state()[1].tolist() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_an_agent_that_is_not_asked_any_more_ends_its_thread() -> None:
    before = threading.active_count()
    search(SPACE, PPO(), lambda queries: [Trial(query.candidate, cost(query.candidate)) for query in queries], FIRST, 20.0)
    assert threading.active_count() == before


def test_the_answer_of_a_search_is_never_a_candidate_that_was_not_decided_to_the_end() -> None:
    outcome = search(SPACE, PPO(), lambda queries: [Trial(query.candidate, cost(query.candidate)) for query in queries], FIRST, 40.0)
    assert SPACE.met(outcome.best.candidate)
    assert min(trial.value for trial in outcome.trials) < outcome.best.value


def test_evolution_looks_at_many_on_little_text_and_at_few_on_all_of_it() -> None:
    strategy = Evolution(offspring=8, survivors=(3, 1), shares=(0.25, 0.5, 1.0))
    shares = [trial.share for trial in run(strategy, 60)]
    counts = [(share, len(list(group))) for share, group in itertools.groupby(shares[1:49])]
    assert counts[0][0] == 0.25
    assert counts[0][1] <= 8
    assert counts[1:3] == [(0.5, 3), (1.0, 1)]


def test_evolution_never_loses_its_parent() -> None:
    whole = [trial.value for trial in run(Evolution(), 300) if trial.share == 1]
    assert whole[-1] <= whole[0]
    assert min(whole) < 0.8 * whole[0]


def test_dynamic_programming_finds_the_best_of_all_candidates_when_errors_add_up() -> None:
    """5 levels on 6 sites can be enumerated: the second question is the plain sum of errors."""
    sites = SITES[:6]
    space = Space(sites, LEVELS, Budget(0.5), SPACE.errors[:6])
    strategy = Dynamic()
    state = strategy.init(space, space.nearest(dict.fromkeys((site.name for site in sites), 0.5)), 0)
    state = strategy.tell(state, [Trial(strategy.ask(state)[0].candidate, 1.0)])
    (query,) = strategy.ask(state)

    def total(candidate: Candidate) -> float:
        return sum(row[level] for row, level in zip(space.errors, candidate, strict=True))

    best = min((candidate for candidate in itertools.product(range(5), repeat=6) if space.met(candidate)), key=total)
    assert total(query.candidate) == pytest.approx(total(best), rel=1e-9)


def test_dynamic_programming_needs_errors() -> None:
    with pytest.raises(RecipeError, match="'dynamic' needs the error of every site"):
        Dynamic().init(Space(SITES, LEVELS, Budget(0.5)), FIRST, 0)


def test_a_strategy_whose_library_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(MissingExtra, match=r"pip install 'prunus\[search\]'"):
        CMAES().init(SPACE, FIRST, 0)
