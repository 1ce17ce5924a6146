"""A report as text for people and as data for programs, whatever the numbers are."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from prunus.budget import Budget
from prunus.evaluation import Measurement
from prunus.granularity import NM
from prunus.lookup import find, names
from prunus.recipe import Recipe, Stage, build
from prunus.report import Renderer
from prunus.result import Report, SiteRecord


def measurement(value: float, parts: tuple[float, ...] = (1.0, 2.0, 1.5)) -> Measurement:
    return Measurement(value, "perplexity", "lower", "news test perplexity, text sha256 abc, 3 windows", parts, 1.25)


REPORT = Report(
    recipe=Recipe((Stage(granularity=NM(2, 4)), Stage(budget=Budget(0.3)))),
    allocation=({"layers.0.mlp.up": 0.5, "layers.1.mlp.up": 0.5}, {"layers.0.mlp.up": 0.7, "layers.1.mlp.up": 0.7}),
    sites=(SiteRecord("layers.0.mlp.up", 0.5, 0.5, 0.125, 1.0), SiteRecord("layers.1.mlp.up", 0.5, 0.5, None, 2.0),
           SiteRecord("layers.1.mlp.up", 0.7, 0.7, 0.25, 3.0)),
    sparsity=0.6543, parameters=(2_000_000, 2_000_000), before=(measurement(10.0),), after=(measurement(12.5, (1.25, 2.25, 1.75)),),
    prompts=("A cherry is",), answers_before=("a\nfruit",), answers_after=("",),
    seconds={"dense": 1.0, "pruning": 2.0, "solving": 1.5, "pruned": 1.0},
    environment={"model": "tiny", "class": "LlamaForCausalLM", "dtype": "float32", "device": "cpu", "torch": "2"},
    notes=("The text was short.",),
)


@pytest.mark.parametrize("name", names("report"))
def test_every_renderer_renders_what_it_is_given_the_same_each_time(name: str) -> None:
    renderer = find("report", name)()
    assert isinstance(renderer, Renderer)
    assert renderer.render(REPORT) == renderer.render(REPORT)
    assert renderer.render(REPORT).endswith("\n")
    assert renderer.render(replace(REPORT, before=(), after=(), prompts=(), answers_before=(), answers_after=(), notes=()))


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_json_holds_every_field_in_full() -> None:
    data = strict(find("report", "json")().render(REPORT))
    assert set(data) == set(Report.__dataclass_fields__)
    assert data["sites"][1] == {"site": "layers.1.mlp.up", "asked": 0.5, "reached": 0.5, "error": None, "seconds": 2.0}
    assert data["before"][0]["parts"] == [1.0, 2.0, 1.5]
    assert build(Recipe, data["recipe"], "recipe") == REPORT.recipe


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=str)
def test_json_stays_json_when_numbers_are_not(bad: float) -> None:
    """A ruined model has an infinite perplexity, and windows whose loss is not a number."""
    data = strict(find("report", "json")().render(replace(REPORT, after=(measurement(bad, (1.0, bad)),))))
    assert data["after"][0]["value"] == str(bad)
    assert data["after"][0]["parts"][0] == 1.0


def test_the_card_says_what_was_done_what_it_cost_and_how_to_repeat_it() -> None:
    card = find("report", "markdown")().render(REPORT)
    for fact in ("`tiny` pruned with", "linear sites to sparsity 0.5, 2:4, by ALPS; then linear sites to sparsity 0.7, unstructured",
                 "**65.43%** of the weights", "Note: The text was short.", "| 10.00 [", "| 12.50 [", "| 1.250 [1.284, 1.284] |",
                 "Protocol: news test perplexity, text sha256 abc, 3 windows.", "**A cherry is**", "- dense: a fruit",
                 "- pruned: (nothing)", "| mlp.up | 3 |", "| 0.1875 | 0.2500 |", "LlamaForCausalLM.from_pretrained",
                 "prunus prune tiny --recipe recipe.toml", REPORT.recipe.to_toml().strip()):
        assert fact in card, fact


def test_the_card_can_tell_of_a_ruined_model() -> None:
    card = find("report", "markdown")().render(replace(REPORT, after=(measurement(math.inf, (1e9, 1e9, 1e9)),)))
    assert "inf [inf, inf]" in card
