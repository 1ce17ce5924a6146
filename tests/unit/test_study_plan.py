"""A study's file: what it means, and what is refused before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest

from prunus.errors import CorpusError, ExportError, LoadError, PrunusError, RecipeError
from prunus.recipe import Recipe
from prunus.solvers.sparsegpt import SparseGPT
from prunus.studying.cells import cells_of
from prunus.studying.plan import Study, read_study, study_of
from prunus.studying.run import planned

from ..studies import study

MODEL = {"source": "some/model"}


def of(*recipes: dict[str, Any], **more: Any) -> Study:
    return study_of({"models": [MODEL], "recipes": list(recipes), **more})


def names(found: Study) -> list[str]:
    return [one.name for one in found.recipes]


def test_a_grid_is_every_combination_and_names_itself() -> None:
    found = of({"grid": {"solver": ["wanda", {"name": "sparsegpt", "damping": 0.1}], "sparsity": [0.5, 0.625]}})
    assert names(found) == ["wanda 50 %", "wanda 62.5 %", "sparsegpt,damping=0.1 50 %", "sparsegpt,damping=0.1 62.5 %"]
    assert [one.method for one in found.recipes] == ["wanda", "wanda", "sparsegpt,damping=0.1", "sparsegpt,damping=0.1"]
    stage, = found.recipes[3].recipe.stage
    assert stage.budget.limit == 0.375
    assert stage.solver == SparseGPT(damping=0.1)
    assert [one.level for one in found.recipes[:2]] == ["sparsity 50 %", "sparsity 62.5 %"]


def test_a_grid_reaches_into_tables_and_a_name_says_where_its_labels_go() -> None:
    found = of({"name": "ours ({calibration.samples})", "solver": "sparsegpt",
                "grid": {"calibration": {"samples": [8, 16]}, "solver": {"damping": [0.1, 0.2]}}})
    assert names(found) == ["ours (8) damping 0.1", "ours (8) damping 0.2", "ours (16) damping 0.1", "ours (16) damping 0.2"]
    assert [one.recipe.calibration.samples for one in found.recipes] == [8, 8, 16, 16]
    assert found.recipes[1].recipe.stage[0].solver == SparseGPT(damping=0.2)


def test_n_m_says_its_sparsity_by_itself_and_is_a_level_and_a_line_of_its_own() -> None:
    found = of({"name": "wanda", "solver": "wanda"}, {"name": "wanda, sparse", "solver": "wanda", "granularity": "1:4"},
               {"name": "wanda, in order", "solver": "wanda", "granularity": "1:4,permute=true"})
    assert [one.recipe.stage[0].budget.limit for one in found.recipes] == [0.5, 0.25, 0.25]
    assert [one.level for one in found.recipes] == ["sparsity 50 %", "sparsity 75 %, 1:4", "sparsity 75 %, 1:4"]
    assert [one.line for one in found.recipes] == ["wanda", "wanda, sparse 1:4", "wanda, in order 1:4,permute=true"]


def test_shapes_of_a_grid_are_one_method_so_that_a_baseline_is_that_of_every_level() -> None:
    found = of({"grid": {"solver": ["magnitude", "wanda"], "sparsity": [0.5, 0.6]}},
               {"grid": {"granularity": ["2:4", "4:8"], "solver": ["magnitude", "wanda"]}}, baseline="wanda")
    assert names(found)[4:] == ["2:4 magnitude", "2:4 wanda", "4:8 magnitude", "4:8 wanda"]
    assert [one.method for one in found.recipes] == ["magnitude", "magnitude", "wanda", "wanda"] + ["magnitude", "wanda"] * 2
    assert [one.line for one in found.recipes[3:6]] == ["wanda", "magnitude 2:4", "wanda 2:4"]


def test_a_recipe_may_be_a_file_whose_metrics_and_seed_are_the_study_s(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(Recipe(seed=7).to_toml())
    found = of({"file": str(file)}, {"name": "less", "file": str(file), "sparsity": 0.3})
    assert names(found) == ["mine", "less"]
    assert [one.recipe.stage[0].budget.limit for one in found.recipes] == [0.5, 0.7]
    assert {(one.recipe.metrics, one.recipe.prompts, one.recipe.seed) for one in found.recipes} == {((), (), 0)}


def test_a_recipe_may_have_stages_of_its_own() -> None:
    found = of({"name": "both", "stage": [{"sites": ["channel"], "solver": "sparsegpt", "budget": {"limit": 0.9}}, {"solver": "wanda"}]})
    assert found.recipes[0].level == "sparsity 10 %, of channel sites; sparsity 50 %"
    with pytest.raises(RecipeError, match="sparsity: the recipe has 2 stages: say it within one of them"):
        of({"name": "both", "stage": [{}, {}], "sparsity": 0.5})


def test_cells_go_seed_by_seed_and_what_seeds_do_not_change_is_run_once() -> None:
    found = of({"grid": {"solver": ["magnitude", "wanda"]}}, seeds=[3, 5])
    assert [cell.name for cell in cells_of(found)] == [
        "model, dense", "model, magnitude", "model, wanda, seed 3", "model, wanda, seed 5"]
    assert [cell.planned().seed for cell in cells_of(found) if cell.recipe] == [0, 3, 5]


@pytest.mark.parametrize(("changes", "message"), [
    ({"sedes": [1]}, "study.sedes: unknown key. Did you mean 'seeds'?"),
    ({"models": [{"src": "a"}]}, "study.models[0].src: unknown key"),
    ({"models": []}, "study.models: none: expected at least one."),
    ({"seeds": []}, "study.seeds: none"),
    ({"seeds": [0, 0]}, "study.seeds: '0' is there twice"),
    ({"seeds": [0.5]}, "study.seeds[0] = 0.5: expected int"),
    ({"models": [MODEL, MODEL]}, "study.models: 'model' is there twice: expected every one once. Give them names"),
    ({"recipes": [{"name": "a"}, {"name": "a"}]}, "study.recipes: 'a' is there twice"),
    ({"recipes": [{"name": "a b"}, {"name": "a-b"}]}, "'a b' and 'a-b' would share a file"),
    ({"recipes": [{"name": "%"}]}, "the name '%' has no letter"),
    ({"recipes": [{"solver": "wanda"}]}, "study.recipes[0].name: expected a name"),
    ({"recipes": [{"name": "a", "solvr": "wanda"}]}, "study.recipes[0].solvr: unknown key. Did you mean 'solver'?"),
    ({"recipes": [{"name": "a", "seed": 1}]}, "study.recipes[0].seed: unknown key"),
    ({"recipes": [{"name": "a", "solver": "wandda"}]}, "recipes[0] (a).stage[0].solver: 'wandda' is unknown. Did you mean 'wanda'?"),
    ({"recipes": [{"name": "a", "sparsity": 50}]},
     "study.recipes[0] (a).sparsity = 50: expected the fraction of weights removed, in [0, 1). Did you mean 0.5?"),
    ({"recipes": [{"name": "a", "sparsity": "half"}]}, "sparsity = 'half': expected a number"),
    ({"recipes": [{"name": "a", "sparsity": 0.5, "budget": {"limit": 0.5}}]}, "sparsity and budget: expected one of them"),
    ({"recipes": [{"name": "a", "sparsity": 0.6, "granularity": "2:4"}]}, "n:m fixes the sparsity at 0.5"),
    ({"recipes": [{"grid": {"solver": []}}]}, "study.recipes[0].grid.solver = []: expected a list of at least one value"),
    ({"recipes": [{"grid": {"solve": ["wanda"]}}]}, "study.recipes[0].grid.solve: unknown key. Did you mean 'solver'?"),
    ({"recipes": [{"name": "{sparsty}", "grid": {"sparsity": [0.5]}}]}, "{sparsty} stands for nothing in its grid. Did you mean "),
    ({"recipes": [{"name": "a", "file": "nothing.toml"}]}, "recipe nothing.toml: cannot be read"),
    ({"baseline": "wanda"}, "study.baseline = 'wanda': no method and no recipe has this name"),
    ({"metrics": {"length": 16, "tokns": 3}}, "study.metrics.tokns: unknown key. Did you mean 'tokens'?"),
    ({"metrics": {"corpora": []}}, "neither corpora nor tasks"),
])
def test_what_is_wrong_is_told_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as told:
        study_of({"models": [MODEL], "recipes": [{"name": "one"}], **changes})
    assert message in str(told.value)


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("models = [")
    for name, message in (("broken", "not valid TOML"), ("nothing", "cannot be read")):
        with pytest.raises(RecipeError, match=message):
            read_study(tmp_path / f"{name}.toml")


@pytest.mark.parametrize(("changes", "kind", "message"), [
    ({"models": [{"source": "package:nothing_there"}]}, LoadError, "no package 'nothing_there'"),
    ({"models": [{"source": "a/b", "dtype": "float7"}]}, RecipeError, "dtype 'float7' is unknown"),
    ({"metrics": {"corpora": ["builtim"]}}, CorpusError, "corpus 'builtim' is unknown"),
    ({"metrics": {"corpora": [], "tasks": ["piqq"]}}, RecipeError, "task 'piqq' is unknown. Did you mean 'piqa'?"),
    ({"device": "cuda:99"}, RecipeError, "device 'cuda:99' cannot be used here"),
    ({"metrics": {}, "recipes": [{"name": "a", "solver": "wanda", "calibration": {"split": "test"}}]}, CorpusError, "report"),
])
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
        changes: dict[str, Any], kind: type[PrunusError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.comparing.looking.load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(kind) as told:
        planned(study(tmp_path, **changes), tmp_path / "out")
    assert message in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_reads_no_text_may_overlap_with_none(tmp_path: Path) -> None:
    recipe = {"name": "a", "solver": "magnitude", "calibration": {"corpus": "builtin", "split": "test"}}
    assert planned(study(tmp_path, recipes=[recipe], metrics={}), tmp_path / "out").overlaps == {"a": ()}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not of an earlier study"):
        planned(study(tmp_path), tmp_path / "out")


def test_the_committed_studies_are_studies() -> None:
    files = sorted((Path(__file__).parents[2] / "benchmarks" / "studies").glob("*.toml"))
    assert files
    for file in files:
        assert read_study(file).out
