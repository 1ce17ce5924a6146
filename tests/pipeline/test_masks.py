"""Stages that learn which channels stay: the model keeps what was learned, and nothing when that was not worth it."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.sample import Calibration
from prunus.criteria.magnitude import Magnitude
from prunus.errors import RecipeError
from prunus.pipeline import Progress, allocate, prune
from prunus.recipe import Recipe, Stage, build
from prunus.result import Pruned
from prunus.search.channels import ChannelSpace
from prunus.search.fitness import Fitness
from prunus.search.plan import Search
from prunus.search.strategies.masks import Masks
from prunus.sites import ChannelSite
from prunus.solvers.mask import Mask
from prunus.solvers.refit import Refit
from prunus.solvers.sparsegpt import SparseGPT
from prunus.surgery.write import clear_rows, module_layout

from ..tiny import CAUSAL, tiny_model, tiny_tokenizer

TEXT = Calibration("self", samples=8, length=24)
LEARNING = Search(Masks(population=8, share=0.25, rate=0.1, answers=2), evaluations=15.0, text=TEXT)


def recipe_with(text_file: Path, search: Search | None = LEARNING, **stage: Any) -> Recipe:
    settings = {"sites": ("channel",), "budget": Budget(0.7), "solver": Refit(), "search": search, **stage}
    return Recipe((Stage(**settings),), Calibration(str(text_file), samples=4, length=32), (), ())


def run(recipe: Recipe, model: Any = None, **settings: Any) -> Pruned:
    return prune(tiny_model() if model is None else model, recipe, tokenizer=tiny_tokenizer(), **settings)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The rankings that searches have found, as they are handed to solvers."""
    found: list[dict[str, torch.Tensor]] = []
    real = ChannelSpace.rankings
    monkeypatch.setattr(ChannelSpace, "rankings", lambda self, candidate: found.append(dict(real(self, candidate))) or found[-1])
    return found


def values_are(monkeypatch: pytest.MonkeyPatch, step: float, held_out_only: bool = False) -> None:
    """Every candidate's value is by `step` above that of the one before it."""
    real, calls = Fitness._divergence, itertools.count()

    def value(self: Fitness, candidate: Any, part: range, every: int) -> float:
        invented = not held_out_only or len(self.tokens) == 2  # two sequences are held out
        return 1 + step * next(calls) if invented else real(self, candidate, part, every)

    monkeypatch.setattr(Fitness, "_divergence", value)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("family", CAUSAL)
def test_the_model_keeps_the_channels_that_were_learned(
    family: str, multiple: int, text_file: Path, learned: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the dense model in which the others, and the rows that make them, are zeroed by hand."""
    values_are(monkeypatch, -0.001)
    model, masked = tiny_model(family), tiny_model(family)
    report = run(recipe_with(text_file, solver=Mask(Magnitude()), multiple=multiple), model).report
    (found,), (ranking,), (shares,) = report.searches, learned, report.allocation
    assert found.kept
    for site, record in zip(describe(masked).sites("channel"), report.sites, strict=True):
        assert isinstance(site, ChannelSite)
        module = masked.get_submodule(site.consumer)
        module_layout(module, module.weight.data).mul_(ranking[site.name])
        gone = (ranking[site.name].view(site.count, site.width)[:, 0] == 0).nonzero().flatten()
        clear_rows(masked, site.producers, gone)
        assert record.reached == pytest.approx(shares[site.name]) == pytest.approx(len(gone) / site.count)
        assert site.width > 1 or (site.count - len(gone)) % multiple == 0
    tokens = torch.arange(40).view(2, 20) * 7 % 256
    with torch.no_grad():
        assert (model(input_ids=tokens).logits - masked(input_ids=tokens).logits).abs().max() < 1e-4
    assert report.sparsity >= 0.3


def test_learned_masks_are_better_on_text_that_was_not_learned_from(text_file: Path) -> None:
    (found,) = run(recipe_with(text_file, Search(Masks(rate=0.1, share=0.25), evaluations=60.0, text=TEXT))).report.searches
    assert found.kept
    assert found.best < 0.8 * found.first
    assert found.held_out_best < 0.8 * found.held_out_first
    assert found.store_bytes == 0


def test_when_held_out_text_says_no_the_solver_chooses_as_it_does_without(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = tiny_model(), tiny_model()
    expected = run(recipe_with(text_file, None), plain).report
    values_are(monkeypatch, 0.001, held_out_only=True)
    report = run(recipe_with(text_file), model).report
    assert not report.searches[0].kept
    assert report.allocation == expected.allocation
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_interrupted_learning_is_resumed_with_the_same_masks(text_file: Path, tmp_path: Path,
                                                                learned: list[dict[str, torch.Tensor]]) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == "searching" and progress.done > 5:
            raise Stop

    recipe = recipe_with(text_file, replace(LEARNING, evaluations=30.0, text=replace(TEXT, samples=16)))  # enough for it to be worth it
    expected = run(recipe)
    with pytest.raises(Stop):
        run(recipe, resume=tmp_path / "run", watch=stop)
    found = run(recipe, resume=tmp_path / "run")
    assert found.report.searches[0].kept
    assert found.report.searches[0].curve == expected.report.searches[0].curve
    assert found.report.searches[0].block_passes < expected.report.searches[0].block_passes
    first, second = learned
    assert all(torch.equal(first[name], second[name]) for name in first)
    for ours, theirs in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_cannot_be_learned_is_refused_before_any_work(text_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"'masks' decides which channels stay, and solver SparseGPT decides that itself\. Use refit"):
        recipe_with(text_file, solver=SparseGPT())
    with pytest.raises(RecipeError, match=r"linear sites have none\. Use reinforce"):
        recipe_with(text_file, sites=("linear",))
    with pytest.raises(RecipeError, match=r"sublayer sites have none\. Use bernoulli"):
        build(Stage, {"sites": ["sublayer"], "budget": {"limit": 0.7}, "allocation": "influence",
                      "search": {"strategy": "masks"}}, "stage")
    with pytest.raises(RecipeError, match=r"search\.levels: strategy 'masks' knows none"):
        recipe_with(text_file, Search(Masks(), levels=(0.0, 0.5), text=TEXT))
    with pytest.raises(RecipeError, match=r"which shares cannot say\. Prune with it"):
        allocate(tiny_model(), recipe_with(text_file), tokenizer=tiny_tokenizer())
