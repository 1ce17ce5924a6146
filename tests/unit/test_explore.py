"""The loop of a search for a front: first candidates, failures, the log, going on, interruptions."""

import itertools
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunus.errors import MissingExtra, RecipeError
from prunus.search.explore import Exploration, Progress, explore
from prunus.search.pareto import front, hypervolume
from prunus.search.searchers import Question
from prunus.search.searchers.asha import ASHA
from prunus.search.searchers.ehvi import EHVI
from prunus.search.searchers.local import Local
from prunus.search.searchers.nsga2 import NSGA2
from prunus.search.searchers.random import Random

from ..toys import Toy, priced

GENOME = Toy((7, 13, 30))
NAMES = ("loss", "cost")
SEARCHERS = [Local(), NSGA2(), ASHA(), EHVI(startup=6)]
every_searcher = pytest.mark.parametrize("searcher", SEARCHERS, ids=lambda searcher: type(searcher).__name__)


class Counted:
    """An objective that counts its looks, and breaks or is interrupted at some of them."""

    def __init__(self, breaks: Callable[[int], bool] = lambda look: False, stops: int = 0) -> None:
        self.looks, self.breaks, self.stops, self.lock = 0, breaks, stops, threading.Lock()

    def __call__(self, question: Question) -> tuple[float, float]:
        with self.lock:
            self.looks += 1
            look = self.looks
        if look == self.stops:
            raise KeyboardInterrupt
        if self.breaks(look):
            raise ValueError("out of luck")
        return priced(GENOME)(question)


def test_a_search_begins_with_the_largest_the_smallest_and_the_middle_one() -> None:
    found = explore(GENOME, Random(), priced(GENOME), NAMES, 5)
    assert [trial.candidate for trial in found.trials[:3]] == [(6, 12, 29), (0, 0, 0), (3, 6, 14)]
    assert len(found.trials) == 5
    assert [trial.resource for trial in explore(GENOME, ASHA(grace=2), priced(GENOME), NAMES, 3).trials] == [2, 2, 2]


@every_searcher
def test_then_those_that_are_given_are_valued_as_many_as_they_are(searcher: Any) -> None:
    given = [(depth, 3 + depth, 2 * depth) for depth in range(6)] * 2 + [(depth, 12, 29 - depth) for depth in range(6)]
    found = explore(GENOME, searcher, priced(GENOME), NAMES, 40, starts=given)
    candidates = [trial.candidate for trial in found.trials if trial.resource in (0, getattr(searcher, "grace", 0))]
    expected = list(dict.fromkeys(given))
    assert [candidate for candidate in candidates[:15] if candidate in expected] == [one for one in expected if one in candidates[:15]]
    assert set(expected) <= set(candidates)
    assert len(found.trials) == 40


def test_the_front_is_in_the_order_of_the_first_objective() -> None:
    found = explore(GENOME, Random(), priced(GENOME), NAMES, 40)
    assert {trial.values for trial in found.front} == {found.trials[index].values for index in front(found.values)}
    assert [trial.values[0] for trial in found.front] == sorted(trial.values[0] for trial in found.front)


@every_searcher
@pytest.mark.parametrize("parallel", [1, 3])
def test_an_interrupted_search_goes_on_with_the_identical_trials(searcher: Any, parallel: int, tmp_path: Path) -> None:
    log = tmp_path / "run" / "trials.jsonl"
    whole = explore(GENOME, searcher, Counted(), NAMES, 11, parallel=parallel)
    value = Counted(stops=8)
    cut = explore(GENOME, searcher, value, NAMES, 11, parallel=parallel, log=log)
    assert cut.interrupted
    assert plain(cut) == plain(whole)[: len(cut.trials)]
    known = len(log.read_text().splitlines()) - 1
    assert known == value.looks - 1  # what was under way at the same time is kept too
    rest = Counted()
    again = explore(GENOME, searcher, rest, NAMES, 11, parallel=parallel, log=log)
    assert plain(again) == plain(whole)
    assert rest.looks == 11 - known
    third = explore(GENOME, searcher, Counted(), NAMES, 11, parallel=parallel, log=log)
    assert third == again  # seconds too


@every_searcher
def test_a_search_may_be_made_longer(searcher: Any, tmp_path: Path) -> None:
    log, value = tmp_path / "trials.jsonl", Counted()
    explore(GENOME, searcher, value, NAMES, 7, parallel=2, log=log)
    longer = explore(GENOME, searcher, value, NAMES, 10, parallel=2, log=log)
    assert value.looks == 10
    assert plain(longer) == plain(explore(GENOME, searcher, Counted(), NAMES, 10, parallel=2))


def plain(found: Exploration) -> list[Any]:
    return [(trial.candidate, trial.values, trial.resource, trial.failed) for trial in found.trials]


def test_the_log_has_a_line_for_every_trial_as_soon_as_it_is_known(tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    lines: list[int] = []

    def watch(progress: Progress) -> bool:
        lines.append(len(log.read_text().splitlines()))
        return True

    found = explore(GENOME, Random(), Counted(lambda look: look == 4), NAMES, 6, log=log, watch=watch)
    assert lines == [2, 3, 4, 5, 6, 7]
    head, *rows = map(json.loads, log.read_text().splitlines())
    assert head["objectives"] == ["loss", "cost"]
    assert rows[3] == {"candidate": list(found.trials[3].candidate), "resource": 0, "values": None, "seconds": found.trials[3].seconds,
                       "failed": "ValueError: out of luck"}
    good = [row for row in rows if row["values"]]
    assert {tuple(good[index]["values"]) for index in front([row["values"] for row in good])} == {trial.values for trial in found.front}


def test_a_line_that_was_cut_off_is_valued_again(tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    whole = explore(GENOME, Random(), Counted(), NAMES, 6, log=log)
    log.write_text(log.read_text()[:-20])
    value = Counted()
    assert plain(explore(GENOME, Random(), value, NAMES, 6, log=log)) == plain(whole)
    assert value.looks == 1
    assert len(log.read_text().splitlines()) == 7


@pytest.mark.parametrize("parallel", [1, 2])
def test_what_fails_is_written_down_and_the_search_goes_on(parallel: int, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"

    def value(question: Question) -> tuple[float, ...]:
        if question.candidate == GENOME.largest:
            raise ValueError("too large")
        loss, cost = priced(GENOME)(question)
        if question.candidate == GENOME.smallest:
            return math.nan, cost
        return (loss, cost, 1.0) if question.candidate == (3, 6, 14) else (loss, cost)

    found = explore(GENOME, Local(), value, NAMES, 20, parallel=parallel, log=log)
    assert [trial.failed for trial in found.trials[:3]] == ["ValueError: too large", "values = (nan, 0.0)", found.trials[2].failed]
    assert found.trials[2].failed.startswith("values = (")
    assert not any(trial.failed for trial in found.trials[3:])
    assert found.trials[0].values == (math.inf, math.inf)
    assert all(not trial.failed for trial in found.front)
    assert explore(GENOME, Local(), value, NAMES, 20, parallel=parallel, log=log) == found  # failures are read back too


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), MissingExtra("gguf", "gguf")], ids=repr)
def test_what_the_machine_lacks_is_no_failure_of_a_candidate(error: Exception, tmp_path: Path) -> None:
    log, looks = tmp_path / "trials.jsonl", itertools.count()

    def value(question: Question) -> tuple[float, ...]:
        if next(looks) == 6:
            raise error
        return priced(GENOME)(question)

    with pytest.raises(type(error)):
        explore(GENOME, Local(), value, NAMES, 12, log=log)
    assert len(log.read_text().splitlines()) == 1 + 6
    resumed, whole = explore(GENOME, Local(), value, NAMES, 12, log=log), explore(GENOME, Local(), priced(GENOME), NAMES, 12)
    assert [(trial.candidate, trial.values) for trial in resumed.trials] == [(trial.candidate, trial.values) for trial in whole.trials]


def test_a_search_in_which_all_fail_is_given_up() -> None:
    value = Counted(lambda look: True)
    with pytest.raises(RecipeError, match=r"all of the first 10 candidates failed\. The first: ValueError: out of luck"):
        explore(GENOME, Random(), value, NAMES, 100)
    assert value.looks == 10
    with pytest.raises(RecipeError, match="all of the first 4 candidates failed"):
        explore(GENOME, Random(), Counted(lambda look: True), NAMES, 4)
    small = Toy((2, 2))
    with pytest.raises(RecipeError, match="all of the 4 candidates that there are failed"):
        explore(small, Random(), Counted(lambda look: True), NAMES, 100)


def test_a_search_ends_when_no_candidate_is_left() -> None:
    small = Toy((2, 3))
    found = explore(small, NSGA2(), priced(small), NAMES, 100)
    assert len(found.trials) == 6
    assert not found.interrupted


@pytest.mark.parametrize("changes", [{"searcher": Local()}, {"seed": 1}, {"objectives": ("loss", "params")}, {"genome": Toy((7, 13, 31))},
                                     {"identity": "another model"}, {"parallel": 2}], ids=lambda changes: next(iter(changes)))
def test_the_log_of_another_search_is_refused_and_left_alone(changes: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    settings = {"genome": GENOME, "searcher": Random(), "value": Counted(), "objectives": NAMES, "evaluations": 4, "log": log}
    explore(**settings)
    before, key = log.read_text(), next(iter(changes)).replace("genome", "space")
    with pytest.raises(RecipeError, match=rf"holds the trials of another search \({key} = .*Name another folder"):
        explore(**{**settings, **changes})
    assert log.read_text() == before


@pytest.mark.parametrize(("line", "text"), [(1, "nonsense"), (1, '{"identity": "a"}'), (3, '{"candidate": [1, 2, 3]}'), (2, "[]")])
def test_a_damaged_log_is_refused(line: int, text: str, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    explore(GENOME, Random(), Counted(), NAMES, 4, log=log)
    lines = log.read_text().splitlines()
    lines[line - 1] = text
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(RecipeError, match=rf"trials.jsonl, line {line}: is (no trial|not the head)"):
        explore(GENOME, Random(), Counted(), NAMES, 4, log=log)


def test_a_watcher_sees_the_front_grow_and_may_end_the_search() -> None:
    seen: list[Progress] = []

    def watch(progress: Progress) -> bool:
        seen.append(progress)
        return len(seen) < 30

    found = explore(GENOME, Local(), Counted(), NAMES, 100, watch=watch)
    assert found == seen[-1].found
    assert len(found.trials) == 30
    volumes = [progress.hypervolume for progress in seen[2:]]
    assert volumes == sorted(volumes)
    assert 0 < volumes[0] < volumes[-1] < 1
    # the largest loses nothing at the whole cost, the smallest all of 1 + 1/3 + 1/9 at none: their box, a tenth wider
    loss = 1.1 * (1 + 1 / 3 + 1 / 9)
    assert volumes[-1] == pytest.approx(hypervolume(found.values, (loss, 1.1)) / (loss * 1.1))


def test_questions_are_answered_at_the_same_time_and_kept_in_order() -> None:
    """Three threads meet in every batch, or none gets on."""
    meeting = threading.Barrier(3, timeout=20)

    def value(question: Question) -> tuple[float, float]:
        meeting.wait()
        return priced(GENOME)(question)

    found = explore(GENOME, Random(), value, NAMES, 12, parallel=3)
    assert plain(found) == plain(explore(GENOME, Random(), priced(GENOME), NAMES, 12, parallel=3))
    assert not any(trial.failed for trial in found.trials)


def test_arguments_that_make_no_search_are_refused() -> None:
    with pytest.raises(RecipeError, match="objectives = loss: expected two or more, all different"):
        explore(GENOME, Random(), Counted(), ("loss",))
    with pytest.raises(RecipeError, match="objectives = loss, loss: expected two or more, all different"):
        explore(GENOME, Random(), Counted(), ("loss", "loss"))
    with pytest.raises(RecipeError, match="evaluations = 0, parallel = 1"):
        explore(GENOME, Random(), Counted(), NAMES, 0)
