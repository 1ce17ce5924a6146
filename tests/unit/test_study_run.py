"""Cells of a study: run once, gone on with, tried again, and never taken from another study."""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.achieved import counted, sparsity_of
from prunus.anatomy import describe
from prunus.environment import forget_peak, peak_bytes
from prunus.errors import CalibrationError, ComparisonError, ExportError
from prunus.evaluation import Context
from prunus.evaluation.fidelity import Fidelity
from prunus.files import working_alone
from prunus.loading import load
from prunus.pipeline import Progress, prune
from prunus.solvers.sparsegpt import SparseGPT
from prunus.studying.content import as_json, studied_page, write
from prunus.studying.gathered import gathered
from prunus.studying.run import State, Told, planned, state_of

from ..studies import THREE, InProcess, calibration, metrics, ran, study, text

pytestmark = pytest.mark.filterwarnings("ignore")


def cells(out: Path) -> dict[str, Any]:
    return {file.name: json.loads(file.read_text()) for file in sorted((out / "cells").iterdir())}


def same(one: Path, other: Path) -> None:
    """Every file, but for the seconds that it took."""
    mine, theirs = cells(one), cells(other)
    assert mine.keys() == theirs.keys()
    for name, cell in mine.items():
        assert cell["identity"] == theirs[name]["identity"]
        assert untimed(cell["found"]) == untimed(theirs[name]["found"]), name


def untimed(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: untimed(value) for key, value in data.items() if key != "seconds"}
    return [untimed(item) for item in data] if isinstance(data, list) else data


def test_a_second_call_runs_nothing_and_one_more_seed_runs_only_that(tmp_path: Path) -> None:
    worker = InProcess()
    state = ran(study(tmp_path), tmp_path / "out", worker)
    assert sorted(cells(tmp_path / "out")) == [
        "tiny--dense-model.json", "tiny--magnitude.json", "tiny--sparsegpt--seed-0.json", "tiny--sparsegpt--seed-1.json",
        "tiny--wanda--seed-0.json", "tiny--wanda--seed-1.json"]
    assert not (tmp_path / "out" / "unfinished").exists()
    assert not (tmp_path / "out" / "models").exists()
    assert state.missing == ()
    assert len(worker.jobs) == 6
    again = InProcess()
    ran(study(tmp_path), tmp_path / "out", again)
    assert again.jobs == []
    ran(study(tmp_path, seeds=[0, 1, 2], title="Another"), tmp_path / "out", again)
    assert [job.recipe.seed for job in again.jobs if job.recipe] == [2, 2]


def test_a_cell_has_what_pruning_and_measuring_by_hand_give(tmp_path: Path) -> None:
    of = study(tmp_path)
    ran(of, tmp_path / "out")
    found = cells(tmp_path / "out")["tiny--sparsegpt--seed-1.json"]["found"]
    metric = Fidelity((text(tmp_path, 2),), length=32, tokens=512)
    dense: dict[str, Any] = {}
    model, tokenizer = load(str(tmp_path / "tiny"))
    metric.measure(model, Context(tokenizer, dense=dense))
    anatomy = describe(model)
    pruned = prune(model, replace(of.recipes[2].recipe, seed=1), tokenizer=tokenizer)
    expected = metric.measure(pruned.model, Context(tokenizer, dense=dense))
    assert [item["value"] for item in found["measured"]] == [item.value for item in expected]
    assert [tuple(item["parts"]) for item in found["measured"]] == [item.parts for item in expected]
    assert found["sparsity"] == sparsity_of(counted(pruned.model, anatomy, anatomy))
    assert [site["error"] for site in found["sites"]] == [site.error for site in pruned.report.sites]
    assert {matrix["name"] for matrix in found["matrices"]} == {site.name for site in anatomy.sites("linear")}


def test_every_model_is_compared_with_its_own_dense_one(tmp_path: Path) -> None:
    from ..contenders import saved
    from ..tiny import tiny_model

    saved(tmp_path / "other", tiny_model(seed=1))
    models = [{"source": str(tmp_path / name)} for name in ("tiny", "other")]
    of = study(tmp_path, seeds=[0], models=models, recipes=[{"name": "magnitude", "solver": "magnitude"}])
    state = ran(of, tmp_path / "out")
    metric = Fidelity((text(tmp_path, 2),), length=32, tokens=512)
    for name in ("tiny", "other"):
        model, tokenizer = load(str(tmp_path / name))
        dense: dict[str, Any] = {}
        metric.measure(model, Context(tokenizer, dense=dense))
        expected = metric.measure(prune(model, of.recipes[0].recipe).model, Context(tokenizer, dense=dense))
        found = cells(tmp_path / "out")[f"{name}--magnitude.json"]["found"]["measured"]
        assert [item["value"] for item in found] == [item.value for item in expected]
    page = studied_page(gathered(state, Path("a.toml")))
    assert [part.caption for part in page.sections[0].parts[:2]] == ["tiny", "other"]
    costs = gathered(state, Path("a.toml")).models[0].costs
    assert costs[""].processor is None
    assert costs["magnitude"].processor > 0


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    plan = planned(study(tmp_path), tmp_path / "out")
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(ExportError, match=r"tiny--dense-model.json: cannot be written"):
        plan.store.write(state_of(plan).cells[0], {}, {"found": {}})


def test_an_interrupted_study_goes_on_within_its_cell_and_ends_with_the_same_files(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(study(tmp_path), tmp_path / "whole")
    solved: list[str] = []
    solve = SparseGPT.solve_together

    def counting(self: SparseGPT, problems: Any) -> Any:
        solved.extend(problem.name for problem in problems)
        return solve(self, problems)

    monkeypatch.setattr(SparseGPT, "solve_together", counting)

    def watch(progress: Progress) -> None:
        if progress.record is not None and progress.record.error is not None and ".1." in progress.record.site:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(study(tmp_path), tmp_path / "out", tell=Told(watch=watch))
    assert len([name for name in solved if ".0." in name]) == 7
    solved.clear()
    assert sorted(cells(tmp_path / "out")) == ["tiny--dense-model.json", "tiny--magnitude.json", "tiny--wanda--seed-0.json"]
    folder, = (tmp_path / "out" / "unfinished").iterdir()
    assert [file.name for file in folder.glob("*.safetensors")] == ["stage-0-block-0.safetensors"]
    worker = InProcess()
    state = ran(study(tmp_path), tmp_path / "out", worker)
    assert len(worker.jobs) == 3
    assert [".0." in name for name in solved] == [False] * 7 + [True] * 7 + [False] * 7  # the first block of the first seed is there
    same(tmp_path / "out", tmp_path / "whole")
    assert not (tmp_path / "out" / "unfinished").exists()
    took = state.results["tiny--sparsegpt--seed-0"]["took"]
    assert took["resumed"]
    assert "gone on with" in " ".join(gathered(state, Path("a.toml")).notes)


def test_a_cell_that_fails_does_not_end_the_others_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solve = SparseGPT.solve_together

    def refused(self: SparseGPT, problems: Any) -> Any:
        raise CalibrationError("a.matrix: cannot be solved. Use more tokens.")

    def broken(self: SparseGPT, problems: Any) -> Any:
        raise ZeroDivisionError("nothing\nto see")

    for solver, line in ((refused, "a.matrix: cannot be solved. Use more tokens."), (broken, "ZeroDivisionError: nothing")):
        monkeypatch.setattr(SparseGPT, "solve_together", solver)
        state = ran(study(tmp_path, seeds=[0]), tmp_path / "out")
        assert [cell.name for cell in state.failed] == ["tiny, sparsegpt, seed 0"]
        found = gathered(state, Path("a.toml"))
        assert found.failed == {"tiny, sparsegpt, seed 0": line}
        page = studied_page(found)
        assert "Failed cells" in [section.title for section in page.sections]
        kept = cells(tmp_path / "out")["tiny--sparsegpt--seed-0.json"]["failed"]
        assert kept["line"] == line
        assert ("Traceback" in kept["trace"]) == (solver is broken)
    monkeypatch.setattr(SparseGPT, "solve_together", solve)
    worker = InProcess()
    state = ran(study(tmp_path, seeds=[0]), tmp_path / "out", worker)
    assert len(worker.jobs) == 1
    assert state.failed == state.missing == ()


@pytest.mark.parametrize(("samples", "tokens", "message"), [
    (4, 1024, "metric.tokens is 512 there and 1024 here"), (5, 512, "recipe.calibration.samples is 4 there and 5 here")])
def test_files_of_another_study_are_refused_with_what_differs(tmp_path: Path, samples: int, tokens: int, message: str) -> None:
    ran(study(tmp_path, seeds=[0]), tmp_path / "out")
    before = cells(tmp_path / "out")
    other = study(tmp_path, seeds=[0], metrics=metrics(tmp_path, tokens),
                  recipes=[{"grid": {"solver": list(THREE)}, "calibration": calibration(tmp_path, samples)}])
    with pytest.raises(ComparisonError, match="is of another study: ") as told:
        state_of(planned(other, tmp_path / "out"))
    assert message in str(told.value)
    with pytest.raises(ComparisonError, match="--overwrite"):
        ran(other, tmp_path / "out")
    assert cells(tmp_path / "out") == before
    worker = InProcess()
    assert ran(other, tmp_path / "out", worker, overwrite=True).missing == ()
    assert len(worker.jobs) == len([name for name, cell in cells(tmp_path / "out").items() if cell != before[name]]) > 0


def test_other_weights_under_the_same_name_are_another_study(tmp_path: Path) -> None:
    from ..contenders import saved
    from ..tiny import tiny_model

    of = study(tmp_path, seeds=[0], recipes=[{"name": "magnitude", "solver": "magnitude"}])
    ran(of, tmp_path / "out")
    saved(tmp_path / "tiny", tiny_model(seed=1))
    with pytest.raises(ComparisonError, match=r"tiny--dense-model.json: is of another study: model.weights is \w+ there and \w+ here"):
        ran(of, tmp_path / "out")


def test_a_text_that_has_changed_is_another_study(tmp_path: Path) -> None:
    recipes = [{"name": "wanda", "solver": "wanda", "calibration": calibration(tmp_path)}]
    ran(study(tmp_path, seeds=[0], recipes=recipes), tmp_path / "out")
    file = Path(text(tmp_path, 1))
    file.write_text(file.read_text() + " And more of it.")
    with pytest.raises(ComparisonError, match=r"wanda--seed-0.json: is of another study: texts.calibration is"):
        ran(study(tmp_path, seeds=[0], recipes=recipes), tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"identity": {}}'])
def test_a_damaged_file_is_told_and_not_taken(tmp_path: Path, text: str) -> None:
    of = study(tmp_path, seeds=[0], recipes=[{"name": "magnitude", "solver": "magnitude"}])
    ran(of, tmp_path / "out")
    (tmp_path / "out" / "cells" / "tiny--magnitude.json").write_text(text)
    with pytest.raises(ComparisonError, match=r"tiny--magnitude.json: is no result of a study, or is damaged"):
        ran(of, tmp_path / "out")
    assert ran(of, tmp_path / "out", overwrite=True).missing == ()


def test_pruned_models_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    recipes = [{"name": "wanda", "solver": "wanda", "calibration": calibration(tmp_path)}]
    plain = ran(study(tmp_path, seeds=[0], recipes=recipes), tmp_path / "out")
    worker = InProcess()
    kept = ran(study(tmp_path, seeds=[0], recipes=recipes, keep=True), tmp_path / "out", worker)
    assert [job.recipe is not None for job in worker.jobs] == [True]
    assert plain.results["tiny--wanda--seed-0"]["found"]["measured"][0]["value"] == (
        kept.results["tiny--wanda--seed-0"]["found"]["measured"][0]["value"])
    folder = tmp_path / "out" / "models" / "tiny--wanda--seed-0"
    model, tokenizer = load(folder)
    dense = load(tmp_path / "tiny").model
    assert sparsity_of(counted(model, describe(model), describe(dense))) == 0.5
    report = json.loads((folder / "report.json").read_text())
    value = Fidelity((text(tmp_path, 2),), length=32, tokens=512).measure(model, Context(tokenizer))[0].value
    assert report["after"][0]["value"] == value
    assert report["before"][0]["value"] == kept.results["tiny--dense-model"]["found"]["measured"][0]["value"]
    assert not ran(study(tmp_path, seeds=[0], recipes=recipes, keep=True), tmp_path / "out").missing


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> State:
    folder = tmp_path_factory.mktemp("study")
    recipes = [{"grid": {"solver": ["magnitude", "wanda"], "sparsity": [0.5, 0.7]}, "calibration": calibration(folder)},
               {"name": "channels", "sites": "channel", "solver": "sparsegpt", "sparsity": 0.25, "calibration": calibration(folder)}]
    return ran(study(folder, recipes=recipes, baseline="wanda", title="Plums | pears"), folder / "out")


def test_the_report_has_means_and_deviations_of_the_cells(whole: State, tmp_path: Path) -> None:
    found = gathered(whole, Path("a b.toml"))
    written = write(found, tmp_path, "title = 'Plums'")
    assert [file.name for file in written] == ["study.html", "study.md", "study.json"]
    data = json.loads((tmp_path / "study.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    number = data["models"][0]["numbers"][0]
    values = {name: cell["found"]["measured"][0]["value"] for name, cell in cells(whole.plan.store.folder).items()}
    seeds = [values["tiny--wanda-50--seed-0.json"], values["tiny--wanda-50--seed-1.json"]]
    entry = number["recipes"]["wanda 50 %"]
    assert entry["values"] == {"0": seeds[0], "1": seeds[1]}
    assert entry["mean"] == pytest.approx(sum(seeds) / 2)
    assert entry["deviation"] == pytest.approx(statistics.stdev(seeds))
    assert number["recipes"]["magnitude 50 %"]["deviation"] == "nan"
    assert number["dense"] == values["tiny--dense-model.json"]
    assert number["recipes"]["magnitude 70 %"]["against"]["baseline"] == "wanda 70 %"
    shown = (tmp_path / "study.md").read_text()
    assert f"{sum(seeds) / 2:,.2f} ± {statistics.stdev(seeds):,.2f}" in shown
    assert shown.index("| tiny (dense) ") < shown.index("| magnitude 50 % ")
    assert "prunus study 'a b.toml' --out" in shown
    assert "title = 'Plums'" in shown
    assert data["models"][0]["numbers"][0]["protocol"].partition(" first ")[2] in shown.replace("\\", "")


def test_every_form_has_every_table_and_the_charts_a_line_for_every_method(whole: State, tmp_path: Path) -> None:
    found = gathered(whole, Path("a.toml"))
    page = studied_page(found)
    assert [section.title for section in page.sections] == [
        "Results", "What can be said", "Quality against sparsity", "Cost", "Protocols", "Reproduce"]
    write(found, tmp_path)
    html = (tmp_path / "study.html").read_text()
    assert "Plums | pears" in html
    for name in ("dense", "magnitude", "wanda", "channels"):
        assert f'">{name}</text>' in html
    assert html.count("<polyline") == 4
    assert html.count("<svg") == 1
    data = json.loads(as_json(found, page))
    assert [table["caption"] for table in data["tables"]] == ["tiny", "What the tests allow to say of every number",
                                                              "tiny: text-2.txt test perplexity against sparsity",
                                                              "What a cell took, mean ± deviation over seeds; of memory the most"]
    groups = [title for title, _ in page.sections[0].parts[0].groups]
    assert groups == ["", "Sparsity 50 %", "Sparsity 70 %", "Sparsity 25 %, of channel sites"]
    reached = found.models[0].reached
    assert reached["channels"].parameters < reached[""].parameters == reached["wanda 50 %"].parameters
    assert 0 < reached["channels"].error < 1  # Wanda and magnitude have no Gram to tell it from
    assert (reached[""].error, reached["wanda 50 %"].error) == (None, None)


def test_an_unfinished_study_has_a_report_that_says_so(whole: State, tmp_path: Path) -> None:
    part = replace(whole, results={name: result for name, result in whole.results.items() if name not in (
        "tiny--wanda-50--seed-1", "tiny--channels--seed-0", "tiny--channels--seed-1", "tiny--dense-model")})
    found = gathered(part, Path("a.toml"))
    assert found.missing == 4
    assert "4 cells are missing" in " ".join(studied_page(found).lead)
    write(found, tmp_path)
    assert "1 of 2 seeds" in (tmp_path / "study.md").read_text()
    nothing = gathered(replace(whole, results={}), Path("a.toml"))
    write(nothing, tmp_path)
    assert nothing.missing == len(whole.cells)


def test_an_estimate_is_made_from_cells_that_are_alike(whole: State) -> None:
    def took(name: str, seconds: float) -> dict[str, Any]:
        return {name: {"found": {}, "took": {"whole": seconds}}}

    empty = replace(whole, results={})
    assert empty.left is None
    by_file = {cell.file: cell for cell in whole.cells}
    known = {**took("tiny--dense-model", 1.0), **took("tiny--wanda-50--seed-0", 10.0), **took("tiny--magnitude-50", 4.0)}
    some = replace(whole, results=known)
    assert some.seconds(by_file["tiny--wanda-50--seed-1"]) == 10.0
    assert some.seconds(by_file["tiny--wanda-70--seed-0"]) == 7.0
    assert some.left == pytest.approx(10 + 7 * (len(whole.missing) + len(whole.cells) - 4))


def test_reward_hacking_is_flagged_by_cell(whole: State) -> None:
    results = dict(whole.results)
    dense = results["tiny--dense-model"]["found"]["measured"]
    worse = [{**dense[0], "parts": [part + 2 for part in dense[0]["parts"]], "value": dense[0]["value"] * math.exp(2)}, *dense[1:]]
    results["tiny--dense-model"] = {**results["tiny--dense-model"], "found": {**results["tiny--dense-model"]["found"], "measured": worse}}
    flags = gathered(replace(whole, results=results), Path("a.toml")).flags
    assert any(flag.startswith("tiny, wanda 50 %, seed 0 may be reward-hacked: text-2.txt test perplexity is better") for flag in flags)


def test_the_peak_of_memory_begins_again() -> None:
    held = torch.ones(64 << 20)
    before = peak_bytes()
    del held
    if not forget_peak():
        pytest.skip("this system does not forget")
    assert peak_bytes() < before - (128 << 20)


def test_a_study_that_another_process_runs_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = study(tmp_path)
    with working_alone(out), pytest.raises(ExportError, match=r"out: another process works in it\. Wait until it ends"):
        ran(asked, out)
    assert not out.exists()  # where nothing was put into it
    state = ran(asked, out)
    assert not state.missing
    assert not state.failed


def test_a_key_that_came_into_recipes_later_is_taken_for_what_it_says_where_it_is_left_out(tmp_path: Path) -> None:
    asked, folder = study(tmp_path, seeds=[0]), tmp_path / "out"
    ran(asked, folder)
    for file in (folder / "cells").glob("*seed-0.json"):
        kept = json.loads(file.read_text())
        del kept["identity"]["recipe"]["calibration"]["written"]
        file.write_text(json.dumps(kept))
    worker = InProcess()
    ran(asked, folder, worker)
    assert not worker.jobs
    kept["identity"]["recipe"]["calibration"]["length"] = 16
    file.write_text(json.dumps(kept))
    with pytest.raises(ComparisonError, match=r"recipe\.calibration\.length is 16 there"):
        ran(asked, folder, worker)
