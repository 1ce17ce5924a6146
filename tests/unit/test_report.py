"""A report as text for people and as data for programs, whatever the numbers are."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from prunus.achieved import Counted
from prunus.budget import Budget
from prunus.cost import Cost
from prunus.evaluation import Example, Measurement
from prunus.grams import Overlap
from prunus.granularity import NM
from prunus.known import Sanity
from prunus.lookup import find, names
from prunus.recipe import Recipe, Stage, build
from prunus.report import Renderer
from prunus.result import Report, SiteRecord
from prunus.solvers.refit import Refit


def measurement(value: float, parts: tuple[float, ...] = (1.0, 2.0, 1.5)) -> Measurement:
    return Measurement(value, "perplexity", "lower", "news test perplexity, text sha256 abc, 3 windows", parts, 1.25)


REPORT = Report(
    recipe=Recipe((Stage(granularity=NM(2, 4)), Stage(budget=Budget(0.3)))),
    allocation=({"layers.0.mlp.up": 0.5, "layers.1.mlp.up": 0.5}, {"layers.0.mlp.up": 0.7, "layers.1.mlp.up": 0.7}),
    sites=(SiteRecord("layers.0.mlp.up", 0.5, 0.5, 0.125, 1.0), SiteRecord("layers.1.mlp.up", 0.5, 0.5, None, 2.0),
           SiteRecord("layers.1.mlp.up", 0.7, 0.7, 0.25, 3.0)),
    sparsity=0.6543, parameters=(2_000_000, 2_000_000), bytes=(8 * 2**20, 8 * 2**20),
    before=(measurement(10.0),), after=(measurement(12.5, (1.25, 2.25, 1.75)),),
    prompts=("A cherry is",), answers_before=("a\nfruit",), answers_after=("",),
    cost=Cost({"dense": 1.0, "pruning": 2.0, "solving": 1.5, "pruned": 1.0}, {"dense": 1536.0, "pruning": 640.0}, measurements=2,
              host_bytes=300 * 2**20),
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
                 "**65.43%** of the weights", "Note: The text was short.", "| 10.00 [", "| 12.50 [", "| 1.250 [1.284, 1.284] | lower |",
                 "Protocol: news test perplexity, text sha256 abc, 3 windows.", "**A cherry is**", "- dense: a fruit",
                 "- pruned: (nothing)", "| mlp.up | 3 |", "| 0.1875 | 0.2500 |", "LlamaForCausalLM.from_pretrained",
                 "prunus prune tiny --recipe recipe.toml", REPORT.recipe.to_toml().strip()):
        assert fact in card, fact


def test_the_card_begins_with_what_makes_it_worth_less() -> None:
    card = find("report", "markdown")().render(replace(REPORT, flags=("May be reward-hacked: it is: so.", "Second: thing.")))
    assert card.startswith("# Pruned model\n\n> **May be reward-hacked:** it is: so.\n>\n> **Second:** thing.\n\n`tiny` pruned with")


def test_the_card_and_the_data_have_rates_counts_and_the_whole_cost() -> None:
    cost = replace(REPORT.cost, looks=7.5, questions=30, device_bytes=2**30, joules={"GPU": 1234.5}, files={"model.safetensors": 3 * 2**20})
    overlap = Overlap("calibration text (c4 train)", "report text (news test)", 1000, 5, (0, 7))
    report = replace(REPORT, cost=cost, overlaps=(overlap,), sanity=(Sanity("news", 10.0, 12.0, "a.json", -2.0),),
                     matrices=(Counted("a", 1000, 400, 100), Counted("b", 1000, 200, 0)))
    card = find("report", "markdown")().render(report)
    for fact in ("counted in the saved weights: 600 zeros and 100 gone of 2,000.", "| measuring the dense model | 1.0 | 1,536 |",
                 "| in all | 4.0 | 2,176 |",
                 "2 measurements; 30 questions of searches, worth 7.5 looks at their text; at most 300 MiB of memory; "
                 "at most 1,024 MiB of the GPU's; energy of the whole machine meanwhile: 1,234 J GPU; 3.0 MiB of weight files.",
                 "| report text (news test) | calibration text (c4 train) | 5 of 1,000, of 13 words | 0.50% |"):
        assert fact in card, fact
    assert "energy: not readable here" in find("report", "markdown")().render(REPORT)
    data = strict(find("report", "json")().render(report))
    assert data["cost"]["joules"] == {"GPU": 1234.5}
    assert (data["overlaps"][0]["share"], data["matrices"][0]["sparsity"], data["sanity"][0]["off"]) == (0.005, 0.5, True)


def test_the_card_can_tell_of_a_ruined_model() -> None:
    card = find("report", "markdown")().render(replace(REPORT, after=(measurement(math.inf, (1e9, 1e9, 1e9)),)))
    assert "inf [inf, inf]" in card


def test_the_card_tells_zeros_from_what_is_gone() -> None:
    """Zeros are no gain in stock runtimes, in whatever shape; what is cut is one, in parameters and in bytes."""
    def card(*stages: Stage, left: int = 2_000_000) -> str:
        report = replace(REPORT, recipe=Recipe(stages), parameters=(2_000_000, left), bytes=(8 * 2**20, 4 * left))
        return str(find("report", "markdown")().render(report))

    zeros, cut = "run the model no faster for them as it is", "1,500,000 of 2,000,000 parameters are left (embeddings included)"
    for shape, where in (("unstructured", "MACKO on NVIDIA GPUs"), ("2:4", "to_sparse_semi_structured"), ("4:8", "to run 4:8 faster"),
                         ("tile:4x4", "tiles of zeros"), ("columns", "as channels they would not be")):
        stage = build(Stage, {"granularity": shape, "budget": {"limit": 0.5}, "solver": "magnitude"}, "stage")
        assert zeros in card(stage)
        assert where in card(stage)
        assert cut not in card(stage)
    channels = Stage(("channel",), Budget(0.75), solver=Refit())
    assert cut in card(channels, left=1_500_000)
    assert "in 5.7 of 8.0 MiB of weights: 28.5% less" in card(channels, left=1_500_000)
    assert zeros not in card(channels, left=1_500_000)
    assert zeros in card(channels, Stage(), left=1_500_000)


def test_means_are_compared_by_their_difference() -> None:
    def share(label: str, *parts: float) -> Measurement:
        return Measurement(sum(parts) / len(parts), "share", "higher", f"{label}, 0 shots", parts, 1.0, "means",
                           examples=(Example("q1", "0", "1", (-1.5, -0.5)),))

    before = (measurement(10.0), share("piqa acc", 1.0, 1.0, 1.0, 0.0))
    after = (measurement(12.5), share("piqa acc", 1.0, 0.0, 1.0, 0.0))
    report = replace(REPORT, before=before, after=after)
    quality, tasks = find("report", "markdown")().render(report).split("## Tasks and predictions")
    assert "piqa" not in quality
    assert "| | dense | pruned | pruned - dense | better |" in tasks
    low, high = after[1].above(before[1])[1]
    assert f"| piqa acc | 0.7500 [0.3006, 0.9544] | 0.5000 [0.1500, 0.8500] | -0.2500 [{low:+.4f}, {high:+.4f}] | higher |" in tasks
    assert "Protocol: piqa acc, 0 shots." in tasks
    kept = json.loads(find("report", "json")().render(report))["after"][1]
    assert kept["examples"] == [{"name": "q1", "right": "0", "said": "1", "likelihoods": [-1.5, -0.5]}]


def test_the_card_keeps_speed_apart_and_says_which_way_is_better() -> None:
    def timed(label: str, better: Any, *parts: float) -> Measurement:
        return Measurement(sorted(parts)[1], "x", better, f"{label}, PyTorch, 8 tokens", parts, 1.0, "rounds")

    before = (measurement(10.0), timed("tokens read per second", "higher", 90.0, 100.0, 120.0), timed("ms", "lower", 9.0, 10.0, 11.0))
    after = (measurement(12.5), timed("tokens read per second", "higher", 180.0, 150.0, 140.0), timed("ms", "lower", 5.0, 6.0, 8.0))
    quality, speed = find("report", "markdown")().render(replace(REPORT, before=before, after=after)).split("## Speed")
    assert "tokens read" not in quality
    assert "| tokens read per second | 100.00 [90.00, 120.00] | 150.00 [140.00, 180.00] | 1.500 [1.167, 2.000] | higher |" in speed
    assert "| ms | 10.00 [9.00, 11.00] | 6.00 [5.00, 8.00] | 0.600 [0.455, 0.889] | lower |" in speed
    assert "different times" in speed
    assert speed.count("Protocol: tokens read per second; ms, PyTorch, 8 tokens.") == 1
