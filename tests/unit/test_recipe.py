"""A recipe is a value: it survives its file, and what cannot be done cannot be written down."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from prunus.budget import Budget
from prunus.calibration.sample import Calibration
from prunus.criteria import loss_needs
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.ria import RIA
from prunus.effort import EFFORTS
from prunus.errors import PrunusError, RecipeError
from prunus.evaluation.perplexity import Perplexity
from prunus.granularity import NM, Columns, Tile, Unstructured
from prunus.lookup import find, names
from prunus.recipe import Recipe, Stage, build, parse_granularity, plain
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT

from ..problems import SHAPES


def there_and_back(recipe: Recipe, folder: Path) -> Recipe:
    file = folder / "recipe.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8")
    return Recipe.load(file)


def with_solver(**stage: Any) -> Recipe:
    return Recipe((Stage(**stage),))


def changed(plugin: Any) -> Any:
    """The plug-in with every number moved, so that a field that is lost on the way is noticed; fractions stay fractions."""
    values = {item.name: getattr(plugin, item.name) for item in fields(plugin)}
    moved = {name: value / 2 if 0 < value < 1 else value * 2 + 1 for name, value in values.items() if type(value) in (int, float)}
    return replace(plugin, **moved)


PLUGINS = [("solver", "solvers", name) for name in names("solvers")] + [("allocation", "allocation", name)
                                                                        for name in names("allocation")]


@pytest.mark.parametrize(("key", "folder", "name"), PLUGINS)
def test_every_plug_in_survives_the_file_with_all_its_settings(key: str, folder: str, name: str, tmp_path: Path) -> None:
    for plugin in (find(folder, name)(), changed(find(folder, name)())):
        kinds = getattr(plugin, "kinds", ("channel",) if getattr(plugin, "supports", ()) == (Columns,) else ("linear",))
        recipe = with_solver(sites=kinds[:1], **{key: plugin})
        assert there_and_back(recipe, tmp_path) == recipe


@pytest.mark.parametrize("name", names("criteria"))
def test_every_criterion_survives_inside_a_solver(name: str, tmp_path: Path) -> None:
    criterion = changed(find("criteria", name)())
    recipe = with_solver(sites=("channel",) if loss_needs(criterion) else ("linear",), solver=Mask(criterion))
    assert there_and_back(recipe, tmp_path) == recipe


@pytest.mark.parametrize("granularity", [*SHAPES, Unstructured(), Columns(8, nearest=True), Columns(1, 64, True)], ids=str)
def test_every_granularity_survives(granularity: Any, tmp_path: Path) -> None:
    limit = granularity.n / granularity.m if isinstance(granularity, NM) else 0.5
    recipe = with_solver(granularity=granularity, budget=Budget(limit), solver=Mask())
    assert there_and_back(recipe, tmp_path) == recipe


def test_everything_else_survives(tmp_path: Path) -> None:
    recipe = Recipe(
        stage=(Stage(("channel",), Budget(0.75)), Stage(skip=("*.down_proj", "a'b\"c"))),
        calibration=Calibration("news", "validation", 7, 33, True),
        metrics=(Perplexity("wikitext2", "test", 99, 0, False), Perplexity("builtin")), prompts=("Ärger…\n",), seed=-3)
    assert there_and_back(recipe, tmp_path) == recipe
    assert there_and_back(replace(recipe, metrics=(), prompts=()), tmp_path) == replace(recipe, metrics=(), prompts=())


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    assert Recipe.load(tmp_path / "recipe.toml") == Recipe()


@pytest.mark.parametrize(("toml", "place", "hint"), [
    ("sead = 1", "recipe.sead", "seed"),
    ("[calibration]\nsample = 3", "recipe.calibration.sample", "samples"),
    ("[[stage]]\nsparsty = 3", r"recipe.stage\[0\].sparsty", None),
    ("[[stage]]\n[[stage]]\ngranularty = '2:4'", r"recipe.stage\[1\].granularty", "granularity"),
    ("[[stage]]\nsolver = {name = 'sparsegpt', dampening = 1}", r"recipe.stage\[0\].solver.dampening", "damping"),
    ("[[stage]]\nsolver = {name = 'mask', criterion = {name = 'ria', powr = 1}}", r"solver.criterion.powr", "power"),
    ("[[metrics]]\nname = 'perplexity'\nlenght = 3", r"recipe.metrics\[0\].lenght", "length"),
])
def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_known_one(toml: str, place: str, hint: str | None,
                                                                            tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(toml)
    with pytest.raises(RecipeError, match=f"{place}: unknown key") as refused:
        Recipe.load(tmp_path / "r.toml")
    assert "Known: " in str(refused.value)
    assert hint is None or f"Did you mean '{hint}'?" in str(refused.value)


@pytest.mark.parametrize(("data", "reason"), [
    ({"seed": "1"}, r"recipe\.seed = '1': expected int, found str"),
    ({"seed": 2**64}, r"seed = 18446744073709551616: expected a number of 64 bits"),
    ({"seed": True}, r"recipe\.seed = True: expected int, found bool"),
    ({"seed": 1.5}, r"recipe\.seed = 1\.5: expected int, found float"),
    ({"stage": {"solver": "mask"}}, r"recipe\.stage = .*: expected a list"),
    ({"stage": []}, r"^recipe: stage: expected at least one"),
    ({"stage": [{"sites": ["linaer"]}]}, r"recipe\.stage\[0\]\.sites\[0\] = 'linaer': expected one of .*mean 'linear'"),
    ({"stage": [{"sites": ["linear", "channel"]}]}, "expected one kind per stage"),
    ({"stage": [{"sites": ["sublayer"]}]}, "shares out linear and channel sites, not sublayer sites. Use influence or contiguous."),
    ({"stage": [{"sites": ["sublayer"], "allocation": "influence", "granularity": "2:4"}]}, "sublayer sites give whole sublayers"),
    ({"stage": [{"allocation": "ranking"}]}, "allocation 'ranking' shares out channel sites, not linear sites"),
    ({"stage": [{"solver": "taylor"}]}, "solver: 'taylor' looks at the loss channel by channel, and single matrices have no channels"),
    ({"stage": [{"solver": "refit", "allocation": {"name": "reconstruction", "solver": {"name": "refit", "criterion": "taylor"}}}]},
     "allocation: 'reconstruction' looks at the loss channel by channel, and single matrices have no channels. Use channel sites"),
    ({"stage": [{"sites": ["channel"], "allocation": {"name": "fisher", "solver": "taylor"}}]}, r"allocation: solver: expected a probe"),
    ({"stage": [{"sites": ["channel"], "allocation": {"name": "absorption", "base": {"name": "ranking", "criterion": "taylor"}}}]},
     "base: expected an allocator that does not look at the loss channel by channel"),
    ({"stage": [{"allocation": {"name": "absorption", "base": "ranking"}}]}, "allocation 'absorption' shares out channel sites"),
    ({"stage": [{"multiple": 8}]}, "multiple = 8: expected at least 1, and more only where channels go"),
    ({"stage": [{"sites": ["sublayer"], "allocation": "influence", "search": {"strategy": "progressive", "repaired": 4}}]},
     "search.repaired = 4: the stage has no recovery that can repair candidates"),
    ({"stage": [{"search": {"repaired": 4}}]}, "only where sublayers go is there something to repair"),
    ({"stage": [{"search": {"repaired": -1}}]}, "expected no negative number"),
    ({"stage": [{"recovery": {"name": "reconstruct", "unit": "matrix"}}]}, "unit = 'matrix': expected"),
    ({"stage": [{"granularity": "columns:0x2"}]}, "the width and the multiple must be at least 1"),
    ({"stage": [{"allocation": "influence"}]}, "allocation 'influence' shares out sublayer sites, not linear sites."),
    ({"stage": [{"sites": ["sublayer"], "allocation": "influence", "search": {"strategy": "dynamic"}}]}, "which sublayers have none of"),
    ({"stage": [{"sites": ["sublayer"], "allocation": "influence", "search": {"levels": [0.0, 0.5]}}]}, "there or not; leave it out"),
    ({"stage": [{"solver": "sparsgpt"}]}, r"recipe\.stage\[0\]\.solver: 'sparsgpt' is unknown.*mean 'sparsegpt'"),
    ({"stage": [{"solver": 3}]}, r"recipe\.stage\[0\]\.solver = 3: expected a name or a table"),
    ({"stage": [{"solver": {"damping": 3}}]}, r"expected a name or a table with a name"),
    ({"stage": [{"solver": {"name": "sparsegpt", "damping": "big"}}]}, r"solver\.damping = 'big': expected float"),
    *(({"stage": [{"solver": {"name": "alps", "rho": bad}}]}, r"solver\.rho = .*: expected a finite number")
      for bad in (float("nan"), float("inf"))),
    ({"stage": [{"solver": {"name": "alps", "blend": 1.5}}]}, r"blend in \[0, 1\]"),
    *(({"stage": [{"solver": {"name": name, "refit_steps": -1}}]}, r"the least of the others = -1: .* nothing below 0")
      for name in ("alps", "swaps", "ladmm", "sparsegpt")),
    ({"stage": [{"solver": {"name": "refit", "tolerance": -1.0}}]}, "no negative damping or tolerance"),
    ({"stage": [{"granularity": "2:4", "allocation": "owl"}]}, "2:4 fixes the sparsity of every site: allocation 'owl' decides"),
    ({"stage": [{"solver": "magnitude", "target": {"fisher": True}}]}, "target: solver Mask looks at no inputs"),
    ({"stage": [{"solver": "magnitude", "target": {"true_sequential": False}}]}, "target: solver Mask looks at no inputs"),
    ({"stage": [{"granularity": 24}]}, r"granularity = 24: expected a name such as 'unstructured' or '2:4'"),
    ({"stage": [{"granularity": "5:4"}]}, r"5:4: expected 0 < n <= m"),
    ({"stage": [{"budget": {}}]}, r"recipe\.stage\[0\]\.budget: 'limit' is missing"),
    ({"stage": [{"budget": 0.5}]}, r"recipe\.stage\[0\]\.budget = 0\.5: expected a table, found float"),
    ({"stage": [{"budget": {"limit": 50}}]}, r"budget: budget\.limit = 50: .*Did you mean 0\.5\?"),
    ({"stage": [{"effort": "balancd"}]}, r"recipe\.stage\[0\]\.effort = 'balancd': expected one of fast, balanced, best\. Did you mean"),
    ({"stage": [{"effort": "best", "sites": ["linaer"]}]}, r"recipe\.stage\[0\]\.sites\[0\] = 'linaer'"),
    ({"stage": [{"effort": ["best"]}]}, r"effort = \['best'\]: expected one of"),
    ({"calibration": {"samples": 0}}, r"recipe\.calibration: .*at least 1 sequence"),
    ({"metrics": ["perplexty"]}, r"recipe\.metrics\[0\]: 'perplexty' is unknown"),
])
def test_wrong_data_is_refused_with_its_place(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason) as refused:
        build(Recipe, data, "recipe")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("sites", ["linear", "channel", "sublayer"])
def test_an_effort_composes_a_stage_and_what_is_said_beside_it_stands(effort: str, sites: Any, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f'[[stage]]\neffort = "{effort}"\nsites = ["{sites}"]\nbudget.limit = 0.7\n')
    (found,) = Recipe.load(tmp_path / "r.toml").stage
    assert found == Stage.of(effort, sites=(sites,), budget=Budget(0.7))
    assert there_and_back(Recipe((found,)), tmp_path).stage == (found,)
    assert Stage.of(effort, sites=(sites,), recovery=None).recovery is None
    (bare,) = build(Recipe, {"stage": [{"effort": effort, "sites": [sites], "budget": {"limit": 0.7}, "recovery": "none"}]}, "").stage
    assert bare == replace(found, recovery=None)
    assert (found.recovery is None) == (effort == "fast" and sites != "sublayer")


@pytest.mark.parametrize(("stage", "text", "written"), [
    ({"effort": "balanced"}, {}, 22), ({"effort": "balanced"}, {"samples": 4}, 1),
    ({"effort": "best"}, {"samples": 8}, 8), ({"effort": "balanced"}, {"written": 0}, 0),
    ({"effort": "balanced"}, {"corpus": "self"}, 0), ({"effort": "fast"}, {}, 0),
    ({"effort": "best", "sites": ["channel"]}, {}, 0), ({}, {}, 0),
])
def test_an_effort_that_trains_matrices_lets_the_model_write_beside_what_it_reads(stage: Any, text: Any, written: int) -> None:
    built = build(Recipe, {"stage": [{**stage, "budget": {"limit": 0.7}}], "calibration": text}, "recipe")
    assert built.calibration == replace(Calibration(**text), written=written)


@pytest.mark.parametrize("data", [
    {"stage": [{"effort": "balanced"}], "calibration": 3}, {"stage": {"effort": "balanced"}},
    {"stage": [{"effort": "balanced", "sites": 3}]}, {"stage": [{"effort": "balanced"}], "calibration": {"samples": "8"}}, {"stage": [3]}])
def test_wrong_data_beside_an_effort_is_refused_as_without_it(data: Any) -> None:
    with pytest.raises(RecipeError, match="expected"):
        build(Recipe, data, "recipe")


def test_n_m_gives_the_same_everywhere_whatever_the_effort() -> None:
    (found,) = build(Recipe, {"stage": [{"effort": "best", "granularity": "2:4", "budget": {"limit": 0.5}}]}, "recipe").stage
    assert found == replace(Stage.of("best"), granularity=NM(2, 4), allocation=Stage.allocation)
    assert Stage.of("best").allocation != Stage.allocation


@pytest.mark.parametrize("limit", [0.4, 0.75, 1.0])
def test_a_budget_that_n_m_cannot_keep_is_refused(limit: float) -> None:
    with pytest.raises(RecipeError, match=r"2:4 keeps 0\.5 of the weights, but the budget keeps .*fixes the sparsity at 0\.5"):
        Stage(budget=Budget(limit), granularity=NM(2, 4))


def test_a_solver_that_cannot_do_the_granularity_is_refused_with_what_it_can() -> None:
    with pytest.raises(RecipeError, match="SparseGPT cannot do tile; it can do unstructured, nm, columns"):
        Stage(granularity=Tile(4, 4), solver=SparseGPT())


def test_channel_sites_take_no_shape_of_their_own() -> None:
    with pytest.raises(RecipeError, match="channel sites give whole channels; granularity 2:4 does not apply"):
        Stage(("channel",), granularity=NM(2, 4))


@pytest.mark.parametrize("solver", [
    {"name": "sparsegpt", "block": 0}, {"name": "sparsegpt", "block": -3}, {"name": "sparsegpt", "damping": -0.1},
    {"name": "alps", "check_every": 0}, {"name": "alps", "rho": 0.0}, {"name": "alps", "rho": -1.0}, {"name": "alps", "damping": -0.1},
    {"name": "refit", "damping": -0.1},
], ids=str)
def test_settings_that_cannot_work_are_refused_with_their_place(solver: dict[str, Any]) -> None:
    """A block of -3 columns would prune nothing, silently."""
    key = next(key for key in solver if key != "name")
    with pytest.raises(RecipeError, match=rf"stage\.solver: .*{key} = "):
        build(Stage, {"solver": solver}, "stage")


def test_a_criterion_s_name_stands_for_the_solver_that_only_masks() -> None:
    stage = {"solver": "magnitude"}
    assert build(Stage, stage, "stage").solver == Mask(Magnitude())
    assert build(Stage, {"solver": {"name": "ria", "power": 1}}, "stage").solver == Mask(RIA(1.0))


@pytest.mark.parametrize(("text", "expected"), [
    ("unstructured", Unstructured()), ("unstructured:row", Unstructured("row")), ("unstructured:matrix", Unstructured("matrix")),
    ("2:4", NM(2, 4)), ("6:8", NM(6, 8)), ("tile:4x8", Tile(4, 8)), ("columns", Columns(1)), ("columns:16", Columns(16)),
    ("columns,nearest=true", Columns(nearest=True)), ("columns:1x8,nearest=false", Columns(1, 8)), ("2:4,permute=true", NM(2, 4, True)),
])
def test_granularities_by_name(text: str, expected: Any) -> None:
    assert parse_granularity(text) == expected


@pytest.mark.parametrize("text", ["", "2", "2:", ":4", "a:b", "2:4:8", "tile", "tile:4", "tile:4x", "columns:x", "0:4", "5:4",
                                  "columns:0", "tile:0x4", "unstructured:column", "2.5:4", "structured", "columns,permute=true",
                                  "2:4,nearest=true", "2:4,permute=true,permute=true", "tile:4x4,permute=true",
                                  "unstructured,permute=true"])
def test_no_other_name_is_taken_for_a_granularity(text: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_granularity(text)
    assert "\n" not in str(refused.value)


def test_a_table_can_name_a_granularity_too() -> None:
    assert build(Stage, {"granularity": {"name": "nm", "n": 1, "m": 2}}, "stage").granularity == NM(1, 2)


@pytest.mark.parametrize(("content", "reason"), [
    (b"stage = [", "not valid TOML"), (b"\xff\xfe", "not valid TOML"), (None, "cannot be read"),
])
def test_a_file_that_is_no_toml_or_is_missing_is_refused(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"recipe .*r\.toml: {reason}"):
        Recipe.load(file)


def test_a_plug_in_from_outside_is_named_by_module_and_class(tmp_path: Path) -> None:
    table = {"name": "tests.outside:Halve", "share": 0.25}
    stage = build(Stage, {"solver": table}, "stage")
    assert type(stage.solver).__name__ == "Halve"
    assert plain(stage)["solver"] == table
    assert there_and_back(Recipe((stage,)), tmp_path) == Recipe((stage,))


@pytest.mark.parametrize("name", ["tests.outside:Nothing", "tests.nowhere:Halve", "json:JSONDecoder", "os:getcwd", ":", "a:"])
def test_what_is_no_plug_in_outside_is_refused(name: str) -> None:
    with pytest.raises(PrunusError, match="solver"):
        build(Stage, {"solver": name}, "stage")
