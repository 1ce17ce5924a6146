"""Flags mean a recipe; everything that a recipe says about one stage, flags can say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunus.allocation.influence import Influence
from prunus.allocation.owl import OWL
from prunus.budget import Budget
from prunus.calibration.sample import Calibration
from prunus.calibration.target import Target
from prunus.cli.options import named, recipe_of
from prunus.criteria.ria import RIA
from prunus.criteria.wanda import Wanda
from prunus.errors import RecipeError
from prunus.evaluation.perplexity import Perplexity
from prunus.granularity import NM, Columns, Unstructured
from prunus.recipe import Recipe, Stage, build, plain
from prunus.recovery.distill import Distill
from prunus.recovery.patch import Patch
from prunus.recovery.reconstruct import Reconstruct
from prunus.search.plan import Search
from prunus.search.sampling import Sampling
from prunus.search.strategies.local import Local
from prunus.search.strategies.ppo import PPO
from prunus.search.strategies.progressive import Progressive
from prunus.search.strategies.random import Random
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT
from prunus.supernet import TrainingStrategy
from prunus.supernet.one_shot import OneShot


def stage_of(**flags: Any) -> Stage:
    (stage,) = recipe_of(None, flags).stage
    return stage


def test_no_flags_mean_half_by_alps() -> None:
    assert recipe_of(None, {}) == Recipe((Stage(("linear",), Budget(0.5), solver=ALPS()),))


def test_flags_that_were_not_given_are_none_and_mean_nothing() -> None:
    assert recipe_of(None, {"sites": None, "skip": [], "sparsity": None, "seed": None}) == recipe_of(None, {})


@pytest.mark.parametrize(("flags", "expected"), [
    ({"sparsity": 0.7}, Stage(budget=Budget(0.3), solver=ALPS())),
    ({"sparsity": 0.0}, Stage(budget=Budget(1.0), solver=ALPS())),
    ({"sites": "sublayer", "sparsity": 0.25}, Stage(("sublayer",), Budget(0.75), allocation=Influence(), search=Search(Progressive()),
                                                      recovery=Patch())),
    ({"sites": "sublayer", "search": "none", "recovery": "none"}, Stage(("sublayer",), Budget(0.5), allocation=Influence())),
    ({"sites": "channel", "sparsity": 0.25}, Stage(("channel",), Budget(0.75), solver=SparseGPT())),
    ({"granularity": "2:4"}, Stage(granularity=NM(2, 4), solver=ALPS())),
    ({"granularity": "1:4"}, Stage(budget=Budget(0.25), granularity=NM(1, 4), solver=ALPS())),
    ({"granularity": "4:6", "sparsity": 1 - 4 / 6}, Stage(budget=Budget(4 / 6), granularity=NM(4, 6), solver=ALPS())),
    ({"granularity": "4:6"}, Stage(budget=Budget(4 / 6), granularity=NM(4, 6), solver=ALPS())),
    ({"granularity": "columns:8", "solver": "sparsegpt"}, Stage(granularity=Columns(8), solver=SparseGPT())),
    ({"granularity": "unstructured:row"}, Stage(granularity=Unstructured("row"), solver=ALPS())),
    ({"solver": "sparsegpt,damping=0.1,block=64"}, Stage(solver=SparseGPT(0.1, 64))),
    ({"solver": " sparsegpt , damping = 1 "}, Stage(solver=SparseGPT(1.0))),
    ({"allocation": "owl,threshold=7,per=matrix"}, Stage(allocation=OWL(7.0, per="matrix"))),
    ({"search": "local,switches=2", "evaluations": 7.0}, Stage(search=Search(Local(2), 7.0))),
    ({"search": "local", "search_text": "ptb", "length": 64},
     Stage(search=Search(Local(), text=Calibration("ptb", samples=16, length=64)))),
    ({"search": 'ppo,features=["depth", "size"],episodes=2'}, Stage(search=Search(PPO(features=("depth", "size"), episodes=2)))),
    ({"solver": "wanda"}, Stage(solver=Mask(Wanda()))),
    ({"solver": "ria,power=0.25"}, Stage(solver=Mask(RIA(0.25)))),
    ({"solver": "mask,criterion=ria"}, Stage(solver=Mask(RIA()))),
    ({"target": "asymmetry=0.5,fisher=true"}, Stage(target=Target(0.5, fisher=True))),
    ({"effort": "fast"}, Stage.of("fast")),
    ({"effort": "best", "granularity": "2:4"},
     Stage(granularity=NM(2, 4), solver=ALPS(), recovery=Distill(first=Reconstruct(epochs=2)))),
    ({"effort": "best", "solver": "wanda", "recovery": "none"}, Stage.of("best", solver=Mask(Wanda()), recovery=None)),
    ({"effort": "balanced", "sites": "sublayer", "evaluations": 9.0, "search_text": "ptb"},
     Stage(("sublayer",), allocation=Influence(), recovery=Patch(),
           search=Search(Progressive(), 9.0, text=Calibration("ptb", samples=16)))),
    ({"effort": "balanced", "sites": "sublayer", "search": "none"}, Stage(("sublayer",), allocation=Influence(), recovery=Patch())),
    ({"skip": ["*.down_proj", "*.0.*"]}, Stage(solver=ALPS(), skip=("*.down_proj", "*.0.*"))),
])
def test_flags_about_the_stage(flags: dict[str, Any], expected: Stage) -> None:
    found = stage_of(**flags)
    assert found.budget.limit == pytest.approx(expected.budget.limit, abs=1e-11)
    assert found == replace(expected, budget=found.budget)


def test_flags_about_the_text() -> None:
    recipe = recipe_of(None, {"calibration": "c4", "samples": 8, "length": 64, "written": 4, "seed": 5, "evaluate": "wikitext2"})
    assert recipe.calibration == Calibration("c4", samples=8, length=64, written=4)
    assert recipe.metrics == (Perplexity("wikitext2"),)
    assert recipe.seed == 5


def test_flags_about_the_search(tmp_path: Path) -> None:
    found = stage_of(search="random,batch=3", search_text="c4,samples=8,split=validation", objective="perplexity", length=64)
    assert found.search == Search(Random(3), text=Calibration("c4", "validation", 8, 64), objective="perplexity")
    odd = tmp_path / "a,b.txt"
    odd.write_text("text")
    assert stage_of(search="random", search_text=str(odd)).search == Search(Random(), text=Calibration(str(odd), samples=16))


def test_evaluate_none_measures_nothing_and_asks_nothing() -> None:
    recipe = recipe_of(None, {"evaluate": "none"})
    assert recipe.metrics == ()
    assert recipe.prompts == ()


@pytest.mark.parametrize(("sparsity", "reason"), [
    (50.0, r"--sparsity 50: .*in \[0, 1\)\. Did you mean 0\.5\?"), (1.0, r"--sparsity 1: .*in \[0, 1\)"),
    (-0.1, r"--sparsity -0\.1: "), (100.0, r"--sparsity 100: "), (float("nan"), "--sparsity nan: "),
])
def test_a_sparsity_outside_zero_to_one_is_refused_and_percent_is_understood(sparsity: float, reason: str) -> None:
    with pytest.raises(RecipeError, match=f"^{reason}"):
        stage_of(sparsity=sparsity)


@pytest.mark.parametrize(("flags", "reason"), [
    ({"granularity": "2:4", "sparsity": 0.6}, "2:4 keeps 0.5 of the weights, but the budget keeps 0.4"),
    ({"granularity": "8"}, "--granularity = '8': expected unstructured"),
    ({"granularity": "tile:4x4", "solver": "sparsegpt"}, "SparseGPT cannot do tile"),
    ({"solver": "sparsegtp"}, "Did you mean 'sparsegpt'"),
    ({"evaluations": 5.0}, "--evaluations says nothing without --search"),
    ({"search_text": "c4"}, "--search-text says nothing without --search"),
    ({"repaired": 4}, "--repaired says nothing without --search"),
    ({"search": "random", "objective": "acuracy"}, "Did you mean 'accuracy'"),
    ({"search": "random", "search_text": "c4,sample=3"}, "sample: unknown key. Did you mean 'samples'"),
    ({"search": "evolutoin"}, "Did you mean 'evolution'"),
    ({"solver": "sparsegpt,dampin=1"}, "dampin: unknown key. Did you mean 'damping'"),
    ({"solver": "sparsegpt,0.1"}, "expected key=value after the name, found '0.1'"),
    ({"solver": "sparsegpt,damping=much"}, "damping = 'much': expected float"),
    ({"allocation": "unifrom"}, "Did you mean 'uniform'"),
    ({"sites": "lienar"}, "Did you mean 'linear'"),
    ({"samples": 0}, "at least 1 sequence"),
    ({"effort": "fats"}, "effort = 'fats': expected one of fast, balanced, best. Did you mean 'fast'?"),
])
def test_flags_that_cannot_be_are_refused(flags: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe_of(None, flags)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_recipe_file_is_the_recipe_and_takes_no_flags_beside_it(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("seed = 4\n")
    assert recipe_of(tmp_path / "r.toml", {"skip": []}) == Recipe(seed=4)
    with pytest.raises(RecipeError, match="--sparsity does not go with --recipe"):
        recipe_of(tmp_path / "r.toml", {"sparsity": 0.0})


def test_a_table_inside_settings_is_read_whole() -> None:
    said = 'one_shot,temperature=4.0,sampling={by = "strata", strata = [1.0, 3.0]},subnets=3'
    strategy = build(TrainingStrategy, named(said, "--strategy"), "--strategy")
    assert strategy == OneShot(subnets=3, temperature=4.0, sampling=Sampling(by="strata", strata=(1.0, 3.0)))
    assert build(TrainingStrategy, plain(strategy), "strategy") == strategy
    with pytest.raises(RecipeError, match=r"--strategy: 'oneshot' is unknown\. Did you mean 'one_shot'\?"):
        build(TrainingStrategy, named("oneshot", "--strategy"), "--strategy")
    with pytest.raises(RecipeError, match=r"sampling\.by = 'stratum': expected one of .*\. Did you mean 'strata'"):
        build(TrainingStrategy, named('kd,sampling={by="stratum"}', "--strategy"), "--strategy")
