"""The laws that every searcher of a front obeys, on genomes without a model."""

import itertools
import math
import random
import statistics
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from prunus.errors import MissingExtra, RecipeError
from prunus.lookup import find, names
from prunus.search.explore import explore
from prunus.search.explored import Explored, changed, unseen
from prunus.search.gaussian import scores
from prunus.search.pareto import front, hypervolume
from prunus.search.searchers import Question, Trial
from prunus.search.searchers.asha import ASHA
from prunus.search.searchers.ehvi import EHVI
from prunus.search.searchers.exchange import Exchange
from prunus.search.searchers.lsbo import LSBO
from prunus.search.searchers.morea import MOREA
from prunus.search.searchers.nsga2 import NSGA2
from prunus.search.searchers.rsbo import RSBO
from prunus.search.searchers.stratified import Stratified

from ..toys import Toy, priced, three

# A model takes a tenth of a second per question, so these have few.
SMALL: dict[str, Any] = {"ehvi": EHVI(startup=6), "lsbo": LSBO(startup=6), "rsbo": RSBO(startup=6)}
SEARCHERS = {name: SMALL.get(name) or find("search.searchers", name)() for name in names("search.searchers")}
every_searcher = pytest.mark.parametrize("searcher", [pytest.param(searcher, id=name) for name, searcher in SEARCHERS.items()])
GENOMES = {"numbers": Toy((7, 13, 1, 30)), "bits": Toy((2,) * 12)}
TINY = Toy((2, 3, 1, 2))  # twelve candidates
Value = Callable[[Question], tuple[float, ...]]


def many(searcher: Any) -> int:
    """Questions that show how a searcher goes on after its first ones."""
    return 9 if searcher in SMALL.values() else 24


def run(searcher: Any, genome: Toy, value: Value, questions: int = 0, seed: int = 0, count: int = 1) -> list[Trial]:
    questions = questions or many(searcher)
    state, told = searcher.init(genome, seed), []
    while len(told) < questions and (asked := searcher.ask(state, count)):
        assert len(asked) <= count
        trials = [answered(question, value) for question in asked]
        state, told = searcher.tell(state, trials), [*told, *trials]
    return told


def answered(question: Question, value: Value) -> Trial:
    values = value(question)
    failed = "" if all(map(math.isfinite, values)) else "no number"
    return Trial(question.candidate, (math.inf,) * len(values) if failed else values, question.resource, failed=failed)


@every_searcher
@pytest.mark.parametrize("genome", GENOMES.values(), ids=GENOMES)
def test_candidates_lie_in_the_space_and_none_is_asked_for_twice(searcher: Any, genome: Toy) -> None:
    trials = run(searcher, genome, priced(genome))
    assert len({(trial.candidate, trial.resource) for trial in trials}) == len(trials) == many(searcher)
    for trial in trials:
        assert all(0 <= value < size for value, size in zip(trial.candidate, genome.sizes, strict=True))
        assert all(type(value) is int for value in trial.candidate)


@every_searcher
@pytest.mark.parametrize("count", [1, 4])
def test_equal_seeds_ask_the_same_and_others_do_not(searcher: Any, count: int) -> None:
    genome = GENOMES["numbers"]
    found = run(searcher, genome, priced(genome), 0, 3, count)
    assert run(searcher, genome, priced(genome), 0, 3, count) == found
    assert run(searcher, genome, priced(genome), 0, 4, count) != found


@every_searcher
def test_as_many_questions_are_asked_at_a_time_as_may_be(searcher: Any) -> None:
    """A batch may be smaller where a population ends, but on the whole there are fewer batches than half the questions."""
    genome, batches = GENOMES["numbers"], []
    state = searcher.init(genome, 0)
    while sum(batches) < many(searcher) + 1:
        asked = searcher.ask(state, 4)
        batches.append(len(asked))
        state = searcher.tell(state, [answered(question, priced(genome)) for question in asked])
    assert 4 in batches
    assert len(batches) <= many(searcher) // 2


@every_searcher
def test_asking_changes_nothing(searcher: Any) -> None:
    genome = GENOMES["numbers"]
    state = searcher.init(genome, 0)
    for _ in range(many(searcher) - 1):
        asked = searcher.ask(state, 1)
        assert searcher.ask(state, 1) == asked
        state = searcher.tell(state, [answered(question, priced(genome)) for question in asked])


@every_searcher
def test_a_small_space_is_looked_at_as_a_whole(searcher: Any) -> None:
    trials = run(searcher, TINY, priced(TINY), questions=1000)
    assert {trial.candidate for trial in trials} == set(itertools.product(*map(range, TINY.sizes)))
    single = Toy((1, 1))
    assert {trial.candidate for trial in run(searcher, single, priced(single))} == {(0, 0)}


@every_searcher
def test_three_objectives_are_searched_too(searcher: Any) -> None:
    genome = GENOMES["numbers"]
    assert len(run(searcher, genome, three(genome))) == many(searcher)


@every_searcher
def test_failures_do_not_stop_a_search(searcher: Any) -> None:
    genome = GENOMES["numbers"]

    def value(question: Question) -> tuple[float, float]:
        return priced(genome)(question) if sum(question.candidate) % 3 else (math.inf, math.inf)

    trials = run(searcher, genome, value)
    assert len(trials) == many(searcher)
    assert 0 < sum(not trial.failed for trial in trials) < len(trials)
    assert len(run(searcher, genome, lambda question: (math.inf, math.inf))) == many(searcher)


@every_searcher
def test_values_that_differ_by_orders_of_magnitude_are_searched(searcher: Any) -> None:
    genome = GENOMES["numbers"]
    trials = run(searcher, genome, lambda question: (10.0 ** sum(question.candidate), -float(sum(question.candidate))))
    assert len(trials) == many(searcher)


@pytest.mark.parametrize("name", ["local", "morea", "nsga2", "stratified"])
def test_better_than_random_at_equal_evaluations(name: str) -> None:
    """The front has the last variables at nothing before the first ones lose anything. Medians of nine seeds, 60 evaluations."""
    genome = Toy((13,) * 6)
    assert volume(SEARCHERS[name], genome, 60, 9) > 1.02 * volume(SEARCHERS["random"], genome, 60, 9)


@pytest.mark.parametrize("name", ["ehvi", "rsbo"])
def test_a_model_is_better_than_random_at_equal_evaluations(name: str) -> None:
    """Medians of three seeds, 18 evaluations."""
    genome = Toy((13,) * 4)
    assert volume(SEARCHERS[name], genome, 18, 3) > 1.02 * volume(SEARCHERS["random"], genome, 18, 3)


def volume(searcher: Any, genome: Toy, evaluations: int, seeds: int) -> float:
    found = [explore(genome, searcher, priced(genome), ("loss", "cost"), evaluations, seed).values for seed in range(seeds)]
    return statistics.median(hypervolume(values, (1.6, 1.1)) for values in found)


def test_lsbo_finds_the_part_of_the_front_where_both_objectives_weigh_alike() -> None:
    """Of 169 candidates it must come within a hundredth of the best mean in 20 looks; half of random's searches do not."""
    genome = Toy((13, 13))

    def value(question: Question) -> tuple[float, float]:
        one, other = (level / 12 for level in question.candidate)
        return (one - 0.6) ** 2 + other**2, (one - 0.8) ** 2 + (other - 0.4) ** 2

    best = min(sum(value(Question(candidate))) for candidate in itertools.product(range(13), repeat=2))
    found = [min(sum(trial.values) for trial in run(SEARCHERS["lsbo"], genome, value, 20, seed)) for seed in range(3)]
    assert statistics.median(found) <= best + 0.01


def test_a_stratified_search_has_equally_many_candidates_of_every_size() -> None:
    genome = Toy((2,) * 41)  # its own draws are nearly all of 35 to 65 %
    sizes = [genome.remaining(trial.candidate) for trial in run(Stratified(strata=5), genome, priced(genome), 25)]
    counts = numpy.histogram(sizes, bins=5, range=(0, 1.0001))[0]
    assert counts.tolist() == [5] * 5


def test_regularised_evolution_draws_parents_from_its_last_members_alone() -> None:
    """A child differs from one of the last three candidates in one variable."""
    genome = Toy((5,) * 8)
    trials = run(MOREA(population=3, tournament=3), genome, priced(genome), 30)
    for index in range(3, 30):
        living = trials[index - 3 : index]
        assert any(sum(map(int.__ne__, trials[index].candidate, parent.candidate)) == 1 for parent in living)


def test_local_search_changes_one_variable_of_a_member_of_the_front() -> None:
    genome = Toy((5,) * 8)
    trials = run(SEARCHERS["local"], genome, priced(genome), 30)
    for index in range(1, 30):
        members = front([trial.values for trial in trials[:index]])
        assert any(sum(map(int.__ne__, trials[index].candidate, trials[member].candidate)) == 1 for member in members)


def test_an_exchange_gives_one_variable_what_another_loses() -> None:
    """In a child of one exchange one variable of a member of the front has fallen, and others have grown by as much, or are full."""
    genome = Toy((13,) * 8)
    trials = run(Exchange(moves=1, least=38 / 96), genome, priced(genome), 60)
    for index in range(10, 60):
        child = trials[index].candidate
        members = [trials[member].candidate for member in front([trial.values for trial in trials[:index]])]
        parents = [member for member in members if sum(member) >= 38]  # of 96
        changes = [[one - other for one, other in zip(child, parent, strict=True) if one != other] for parent in parents]
        assert any(sum(item < 0 for item in found) == 1 and sum(found) == 0 for found in changes)
    sizes = [genome.remaining(trial.candidate) for trial in run(Exchange(most=0.6), genome, priced(genome), 60)[10:]]
    assert max(sizes) <= 0.6
    assert run(Exchange(), Toy((30,)), priced(Toy((30,))), 30)[-1].candidate  # nothing to exchange: the genome draws


def test_the_best_third_of_a_rung_is_trained_on() -> None:
    """Of a rung of nine, three go on and of these one; their order does not depend on how long they were trained."""
    genome = Toy((50, 50))
    trials = run(ASHA(grace=1, eta=3, longest=9), genome, priced(genome), 60)
    rungs = {rung: [trial.candidate for trial in trials if trial.resource == rung] for rung in (1, 3, 9)}
    assert set(rungs[9]) <= set(rungs[3]) <= set(rungs[1])
    assert len(rungs[1]) // 3 - 1 <= len(rungs[3]) <= len(rungs[1]) // 2
    assert len(rungs[9]) >= 2
    ranked = front([priced(genome)(Question(candidate)) for candidate in rungs[1]])
    assert {rungs[1][index] for index in ranked} & set(rungs[3])


def test_rungs_end_at_the_longest_resource() -> None:
    assert ASHA().rungs == (1, 3, 9)
    assert ASHA(longest=5).rungs == (1, 3, 5)
    assert ASHA(grace=2, eta=2, longest=2).rungs == (2,)


def test_models_see_scales_and_outliers_in_the_same_way() -> None:
    genome = Toy((9,))

    def seen(*values: tuple[float, float]) -> Any:
        trials = tuple(Trial((index,), row, failed="" if math.isfinite(row[0]) else "no number") for index, row in enumerate(values))
        return scores(Explored(genome, 0, trials))

    plain = [(float(index), 8.0 - index) for index in range(9)]
    assert seen(*plain) == pytest.approx(seen(*((1e9 * one - 5, other / 1e9) for one, other in plain)))
    assert seen(*plain, (1e9, 0.0))[:9, 0].max() > 0.4  # one broken candidate does not make all others equal
    assert seen(*plain, (math.inf, math.inf))[9].tolist() == [1.0, 1.0]
    wide = seen(*((10.0**index, 8.0 - index) for index in range(9)))
    assert wide[:, 0] == pytest.approx(numpy.arange(9) / 8)


def test_the_last_candidates_that_are_left_are_found() -> None:
    every = list(itertools.product(range(3), range(4)))
    rng = random.Random(0)
    assert unseen((3, 4), set(every) - {(2, 1)}, rng) == (2, 1)
    assert unseen((3, 4), set(every), rng) is None
    assert changed((0, 0), (3, 4), set(every) - {(0, 3), (1, 1)}, rng) == (0, 3)
    assert changed((0, 0), (3, 4), set(every) - {(1, 1)}, rng) is None


@pytest.mark.parametrize(("name", "library"), [("nsga2", "pymoo"), ("ehvi", "optuna"), ("lsbo", "optuna"), ("rsbo", "scipy")])
def test_a_searcher_whose_library_is_missing_says_what_to_install(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"searcher '{name}' needs .* pip install 'prunus\[search\]'"):
        SEARCHERS[name].init(TINY, 0)


def test_a_model_of_thousands_of_variables_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'ehvi' models at most 200 variables, and this space has 201\. Use nsga2"):
        EHVI().init(Toy((2,) * 201), 0)


@pytest.mark.parametrize("wrong", [
    lambda: NSGA2(population=1), lambda: NSGA2(crossover=1.5), lambda: MOREA(tournament=11), lambda: Stratified(strata=0),
    lambda: Exchange(moves=0), lambda: Exchange(least=0.6, most=0.5),
    lambda: ASHA(eta=1), lambda: ASHA(grace=4, longest=3), lambda: EHVI(startup=1), lambda: LSBO(startup=0), lambda: RSBO(startup=1)])
def test_settings_that_make_no_sense_are_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(RecipeError, match="expected"):
        wrong()


def test_libraries_leave_the_generators_of_others_alone_and_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    genome, before = GENOMES["numbers"], threading.active_count()
    states = numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    for name in ("nsga2", "ehvi"):
        run(SEARCHERS[name], genome, priced(genome))
    assert numpy.random.get_state()[1].tolist() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert threading.active_count() == before
    assert capfd.readouterr() == ("", "")
