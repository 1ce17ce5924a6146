"""A stage that searches: from a recipe to shares that meet the budget, with what the search did in the report."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunus.allocation.owl import OWL
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.sample import Calibration
from prunus.criteria.magnitude import Magnitude
from prunus.errors import CorpusError, ExportError, RecipeError
from prunus.evaluation.perplexity import Perplexity
from prunus.export.huggingface import save
from prunus.granularity import NM
from prunus.lookup import find, names
from prunus.pipeline import Progress, prune
from prunus.recipe import Recipe, Stage
from prunus.result import Pruned
from prunus.search.plan import Search
from prunus.search.strategies.evolution import Evolution
from prunus.search.strategies.local import Local
from prunus.sites import LinearSite
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT

from ..tiny import tiny_model, tiny_tokenizer

TEXT = Calibration("self", samples=8, length=24)


def recipe_with(text_file: Path, search: Search, **stage: Any) -> Recipe:
    settings = {"budget": Budget(0.4), "solver": SparseGPT(), **stage}
    return Recipe((Stage(search=search, **settings),), Calibration(str(text_file), samples=4, length=32), (), ())


def run(recipe: Recipe, model: Any = None, **settings: Any) -> Pruned:
    return prune(model or tiny_model(), recipe, tokenizer=tiny_tokenizer(), **settings)


@pytest.mark.parametrize("strategy", [name for name in names("search.strategies") if name != "masks"])  # which is for channels
def test_every_strategy_ends_in_shares_that_meet_the_budget_to_the_weight(strategy: str, text_file: Path) -> None:
    search = Search(find("search.strategies", strategy)(), evaluations=6.0, text=TEXT)
    report = run(recipe_with(text_file, search)).report
    (shares,), (found,) = report.allocation, report.searches
    sites = [site for site in describe(tiny_model()).sites("linear") if isinstance(site, LinearSite)]
    gone = sum(record.reached * site.size for record, site in zip(report.sites, sites, strict=True))
    total = sum(site.size for site in sites)
    assert 0.6 * total - 1e-6 <= gone <= 0.6 * total + len(sites)
    assert {record.site: record.asked for record in report.sites} == shares
    assert found.best <= found.first
    assert min(moment.held_out for moment in found.curve) == found.held_out_best
    assert found.best in {moment.value for moment in found.curve}
    assert found.block_passes <= found.block_passes_plain
    assert found.held_out_first > 0


def test_channels_are_searched_by_whole_channels(text_file: Path) -> None:
    search = Search(Local(), evaluations=12.0, levels=(0.0, 0.25, 0.5, 0.75), text=TEXT)
    result = run(recipe_with(text_file, search, sites=("channel",), budget=Budget(0.75)))
    assert result.report.sparsity >= 0.25
    assert set(result.report.allocation[0]) == {site.name for site in describe(tiny_model()).sites("channel")}


def test_the_search_starts_from_the_allocator_s_answer_and_keeps_it_when_held_out_text_says_so(
    text_file: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prunus.search.fitness import Fitness

    real, unseen = Fitness._divergence, itertools.count(1.0)
    monkeypatch.setattr(Fitness, "_divergence", lambda self, candidate, count, every: next(unseen) if len(self.tokens) == 2
                        else real(self, candidate, count, every))  # two sequences are held out
    search = Search(Local(), evaluations=15.0, text=TEXT)
    report = run(recipe_with(text_file, search, allocation=OWL(per="matrix"))).report
    (found,) = report.searches
    assert found.curve[-1].value < found.best == found.first
    assert not found.kept
    plain = run(Recipe((Stage(budget=Budget(0.4), solver=SparseGPT(), allocation=OWL(per="matrix")),),
                       Calibration(str(text_file), samples=4, length=32), (), ())).report
    assert report.allocation == plain.allocation
    assert "Nothing that the search found was better on held-out text" in report.notes[0]
    assert "was not the best on held-out text" in report.notes[1]


def test_a_search_ends_early_when_held_out_text_gains_nothing_any_more(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.search.fitness import Fitness

    real = Fitness._divergence
    monkeypatch.setattr(Fitness, "_divergence", lambda self, candidate, count, every: 1.0 if len(self.tokens) == 2
                        else real(self, candidate, count, every))  # two sequences are held out
    (found,) = run(recipe_with(text_file, Search(Local(), evaluations=40.0, text=TEXT, patience=5.0))).report.searches
    assert found.spent == 6  # the first candidate, and five more
    (found,) = run(recipe_with(text_file, Search(Local(), evaluations=40.0, text=TEXT))).report.searches
    assert found.spent == 40


def test_an_answer_that_beats_the_dense_model_on_the_search_text_is_flagged(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(Local(), evaluations=8.0, text=TEXT, objective="perplexity")
    report = run(recipe_with(text_file, search)).report
    (found,) = report.searches
    assert found.dense > 0
    assert any("beats the dense model on the search text" in note for note in report.notes) == (found.best < found.dense)
    better = replace(found, best=found.dense - 0.1)
    assert "beats the dense model on the search text" in " ".join(better.remarks)
    assert "beats the dense model" not in " ".join(replace(found, best=found.dense + 0.1).remarks)


def test_accuracy_on_examples_is_searched_and_reported_as_a_share(text_file: Path, tmp_path: Path) -> None:
    rows = [{"context": f"In this list of words the one with number {index} is", "answer": index % 2,
             "choices": [f"w{index}", f"v{index}", "x"][: 2 + index % 2]} for index in range(12)]
    file = tmp_path / "examples.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    search = Search(Local(), evaluations=8.0, text=Calibration(str(file), samples=12, length=32), objective="accuracy")
    result = run(recipe_with(text_file, search))
    (found,) = result.report.searches
    assert all(round(value * 9, 6).is_integer() for value in (found.dense, found.first, found.best))  # 9 of 12 are searched on
    assert round(found.held_out_first * 3, 6).is_integer()
    save(result, tmp_path / "out")
    assert "| share, of the examples wrong | search text |" in (tmp_path / "out" / "README.md").read_text()
    known = Calibration(str(file), samples=4, length=24)
    own = Recipe((Stage(budget=Budget(0.4), search=search),), replace(known, corpus=str(tmp_path / "same.txt")), (), ())
    (tmp_path / "same.txt").write_text("\n\n".join(f"{row['context']} {row['choices'][row['answer']]}" for row in rows) * 40)
    with pytest.raises(CorpusError, match=r"calibration text .* of the search text"):
        run(own)


def test_levels_that_do_not_fit_on_the_disk_are_refused_before_anything_is_solved(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ExportError, match=r"levels need 0 MiB, 0 MiB are free"):
        run(recipe_with(text_file, Search(Local(), evaluations=4.0, text=TEXT)), resume=tmp_path / "run")
    assert not (tmp_path / "run" / "search-0").exists()


def test_an_interrupted_search_is_resumed_with_the_same_result(text_file: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == "searching" and progress.done > 3:
            raise Stop

    recipe = recipe_with(text_file, Search(Evolution(offspring=4), evaluations=8.0, text=TEXT))
    expected = run(recipe)
    with pytest.raises(Stop):
        run(recipe, resume=tmp_path / "run", watch=stop)
    told: list[Progress] = []
    found = run(recipe, resume=tmp_path / "run", watch=told.append)
    assert not any(progress.phase.startswith("solving levels") for progress in told)
    assert found.report.allocation == expected.report.allocation
    assert found.report.searches[0].curve == expected.report.searches[0].curve
    assert found.report.searches[0].block_passes < expected.report.searches[0].block_passes
    for ours, theirs in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_report_says_what_the_search_was_worth(text_file: Path, tmp_path: Path) -> None:
    result = run(recipe_with(text_file, Search(Local(), evaluations=4.0, text=TEXT)))
    save(result, tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "report.json").read_text())["searches"]
    assert found["strategy"] == "Local"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| the search's answer | {result.report.searches[0].best:.4f} |" in card
    assert Recipe.load(tmp_path / "out" / "recipe.toml") == result.report.recipe


def test_a_solver_without_data_can_be_searched(text_file: Path) -> None:
    report = run(recipe_with(text_file, Search(Local(), evaluations=4.0, text=TEXT), solver=Mask(Magnitude()))).report
    assert math.isfinite(report.searches[0].best)


def test_dynamic_programming_without_errors_is_refused_with_the_reason(text_file: Path) -> None:
    search = Search(find("search.strategies", "dynamic")(), evaluations=4.0, text=TEXT)
    with pytest.raises(RecipeError, match="'dynamic' needs the error of every site"):
        run(recipe_with(text_file, search, solver=Mask(Magnitude())))


def test_search_text_never_overlaps_calibration_or_report_text(text_file: Path) -> None:
    own = Search(text=Calibration(str(text_file), samples=8, length=24))
    with pytest.raises(CorpusError, match=r"calibration text .* of the search text"):
        run(recipe_with(text_file, own))
    report = Recipe((Stage(search=Search(text=Calibration("builtin", "test", samples=8, length=24))),),
                    Calibration(str(text_file), samples=4, length=32), (Perplexity("builtin", tokens=640, length=64),), ())
    with pytest.raises(CorpusError, match=r"search text .* of the report text"):
        run(report)


def test_what_cannot_be_searched_is_refused_before_any_work(text_file: Path) -> None:
    with pytest.raises(RecipeError, match="fixes the sparsity of every site"):
        Stage(granularity=NM(2, 4), search=Search())
    with pytest.raises(RecipeError, match="which this one does not do"):
        run(recipe_with(text_file, Search(text=TEXT)), tiny_model("bert"))
    with pytest.raises(RecipeError, match=r"expected levels on both sides of the budget's sparsity 0\.6"):
        run(recipe_with(text_file, Search(levels=(0.1, 0.5), text=TEXT)))
    with pytest.raises(RecipeError, match="expected more than 0 evaluations"):
        Search(evaluations=0.0)
    with pytest.raises(RecipeError, match=r"examples, which the model does not write itself"):
        Search(objective="accuracy")


@pytest.mark.parametrize("sparsity", [0.02, 0.3, 0.5, 0.7, 0.95])
def test_levels_are_eight_with_the_sparsity_among_them(sparsity: float) -> None:
    levels = Search().levels_around(sparsity)
    assert len(set(levels)) == 8
    assert list(levels) == sorted(levels)
    assert sparsity in levels
    assert all(0 <= level < 1 for level in levels)


def test_a_search_text_that_the_model_cannot_take_is_named(text_file: Path) -> None:
    search = Search(text=Calibration("self", samples=8, length=4096))
    with pytest.raises(RecipeError, match=r"^stage\[0\]\.search\.text\.length = 4096"):
        run(recipe_with(text_file, search))
