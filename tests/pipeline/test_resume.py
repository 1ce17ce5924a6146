"""An interrupted run that is continued ends with the same result as one that was not interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.allocation.fisher import Fisher
from prunus.allocation.owl import OWL
from prunus.budget import Budget
from prunus.calibration import sample
from prunus.calibration.sample import Calibration
from prunus.calibration.writing import written
from prunus.criteria.magnitude import Magnitude
from prunus.criteria.wanda import Wanda
from prunus.errors import RecipeError
from prunus.pipeline import Progress, _Run, prune
from prunus.recipe import Recipe, Stage
from prunus.recovery.distill import Distill
from prunus.recovery.reconstruct import Reconstruct
from prunus.result import Pruned
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT

from ..tiny import tiny_model, tiny_tokenizer


class Stop(Exception):
    """What interrupts a run."""


def stop_at(site: str) -> Callable[[Progress], None]:
    """Interrupt when this site is finished."""
    def watch(progress: Progress) -> None:
        if progress.record is not None and progress.record.site == site:
            raise Stop
    return watch


def run(recipe: Recipe, model: Any = None, **settings: Any) -> Pruned:
    return prune(tiny_model(num_hidden_layers=3) if model is None else model, recipe, tokenizer=tiny_tokenizer(), **settings)


def interrupted_and_resumed(recipe: Recipe, folder: Path, site: str, model: Callable[[], Any]) -> Pruned:
    with pytest.raises(Stop):
        run(recipe, model(), resume=folder, watch=stop_at(site))
    assert list(folder.glob("stage-*"))
    return run(recipe, model(), resume=folder)


def assert_same(found: Pruned, expected: Pruned) -> None:
    theirs = expected.model.state_dict()
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    for ours, other in zip(found.report.sites, expected.report.sites, strict=True):
        assert (ours.site, ours.asked, ours.reached, ours.error) == (other.site, other.asked, other.reached, other.error)


SECOND = {"llama": "model.layers.1.mlp.up_proj", "gpt2": "transformer.h.1.mlp.c_fc", "phi3": "model.layers.1.self_attn.o_proj"}


@pytest.mark.parametrize("solver", [SparseGPT(), ALPS(), Mask(Wanda()), Mask(Magnitude())],
                         ids=["sparsegpt", "alps", "wanda", "magnitude"])
@pytest.mark.parametrize("family", SECOND)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(family: str, solver: Any, recipe_for: Any, tmp_path: Path) -> None:
    recipe = recipe_for(solver=solver)

    def model() -> Any:
        return tiny_model(family)

    assert_same(interrupted_and_resumed(recipe, tmp_path / "run", SECOND[family], model), run(recipe, model()))


def test_shares_that_were_measured_on_the_dense_model_are_the_same_after_a_resume(recipe_for: Any, tmp_path: Path) -> None:
    recipe = recipe_for(solver=SparseGPT(), allocation=OWL(per="matrix"))
    found = interrupted_and_resumed(recipe, tmp_path / "run", SECOND["llama"], tiny_model)
    assert_same(found, run(recipe, tiny_model()))


def test_shares_are_decided_once(recipe_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients differ with the device and with the number of threads; what is finished has to go on fitting."""
    recipe, decide, nudges = recipe_for(solver=SparseGPT(), allocation=Fisher()), _Run._decide, iter((0.0, 0.01, 0.0))

    def nudged(self: Any, *given: Any) -> Any:
        nudge = next(nudges)
        return {name: share + nudge for name, share in decide(self, *given).items()}

    monkeypatch.setattr(_Run, "_decide", nudged)
    found = interrupted_and_resumed(recipe, tmp_path / "run", SECOND["llama"], tiny_model)
    monkeypatch.undo()
    assert_same(found, run(recipe, tiny_model()))


@pytest.mark.parametrize(("sites", "reselect"), [("linear", 0), ("linear", 4), ("channel", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_repairs_its_blocks_goes_on_with_the_block_it_was_at(dtype: torch.dtype, sites: str, reselect: int, recipe_for: Any,
                                                                        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    mend = Reconstruct.mend
    monkeypatch.setattr(Reconstruct, "mend",
                        lambda self, model, place, gone: (trained.append(place.depth), mend(self, model, place, gone))[1])
    solver = Mask(Magnitude()) if reselect else SparseGPT()  # of which not every mask is left as it is
    recipe = recipe_for(sites=(sites,), solver=solver, recovery=Reconstruct(epochs=1, rate=0.03, reselect=reselect), samples=24)

    def stop(progress: Progress) -> None:
        if (progress.phase, progress.done) == ("repairing blocks", 2):
            raise Stop

    def model() -> Any:
        return tiny_model("qwen2", dtype, num_hidden_layers=3)

    expected = run(recipe, model())
    with pytest.raises(Stop):
        run(recipe, model(), resume=tmp_path / "run", watch=stop)
    assert trained == [0, 1, 2, 0, 1]
    assert_same(run(recipe, model(), resume=tmp_path / "run"), expected)
    assert trained == [0, 1, 2, 0, 1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_of_the_whole_model_begins_anew_from_the_blocks(dtype: torch.dtype, recipe_for: Any, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    mend = Reconstruct.mend
    monkeypatch.setattr(Reconstruct, "mend",
                        lambda self, model, place, gone: (trained.append(place.depth), mend(self, model, place, gone))[1])
    recipe = recipe_for(solver=SparseGPT(), recovery=Distill(rate=0.03, share=0.5, first=Reconstruct(epochs=1, rate=0.03)), samples=24)

    def stop(progress: Progress) -> None:
        if (progress.phase, progress.done) == ("training what is kept", 1):
            raise Stop

    expected = run(recipe, tiny_model("qwen2", dtype))
    with pytest.raises(Stop):
        run(recipe, tiny_model("qwen2", dtype), resume=tmp_path / "run", watch=stop)
    assert_same(run(recipe, tiny_model("qwen2", dtype), resume=tmp_path / "run"), expected)
    assert trained == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_resume_with_the_rows_of_their_producers(dtype: torch.dtype, recipe_for: Any, tmp_path: Path) -> None:
    recipe = recipe_for(sites=("channel",), solver=SparseGPT())

    def model() -> Any:
        return tiny_model("qwen2", dtype)

    assert_same(interrupted_and_resumed(recipe, tmp_path / "run", "model.layers.1.mlp.channels", model), run(recipe, model()))


def test_a_second_stage_is_resumed_after_the_whole_of_the_first(text_file: Path, tmp_path: Path) -> None:
    stages = (Stage(("channel",), Budget(0.75), solver=SparseGPT()), Stage(solver=ALPS()))
    recipe = Recipe(stages, Calibration(str(text_file), samples=4, length=32), (), ())
    found = interrupted_and_resumed(recipe, tmp_path / "run", "model.layers.1.mlp.down_proj", tiny_model)
    assert_same(found, run(recipe, tiny_model()))


def test_finished_blocks_are_not_solved_again_and_progress_counts_them(recipe_for: Any, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[str] = []
    solve = SparseGPT.solve_together
    monkeypatch.setattr(SparseGPT, "solve_together",
                        lambda self, problems: (solved.extend(problem.name for problem in problems), solve(self, problems))[1])
    recipe = recipe_for(solver=SparseGPT())
    with pytest.raises(Stop):
        run(recipe, resume=tmp_path / "run", watch=stop_at("model.layers.1.self_attn.q_proj"))
    solved.clear()
    told: list[Progress] = []
    run(recipe, resume=tmp_path / "run", watch=told.append)
    assert len(solved) == 14
    assert not any(".0." in name for name in solved)
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert told[-1].done == told[-1].total
    assert len(told) == 21


def test_a_run_of_its_own_folder_can_be_repeated_to_the_end(recipe_for: Any, tmp_path: Path) -> None:
    """A crash after the last block, before saving."""
    recipe = recipe_for()
    first = run(recipe, resume=tmp_path / "run")
    assert_same(run(recipe, resume=tmp_path / "run"), first)


@pytest.mark.parametrize("other", ["model", "dtype", "recipe", "text", "later weights"])
def test_another_run_s_blocks_are_refused(other: str, recipe_for: Any, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(recipe_for(), tiny_model(), resume=tmp_path / "run", watch=stop_at("model.layers.1.self_attn.q_proj"))
    recipe, model = recipe_for(), tiny_model()
    if other == "model":
        model = tiny_model(seed=1)
    elif other == "dtype":
        model = tiny_model(dtype=torch.bfloat16)
    elif other == "recipe":
        recipe = recipe_for(budget=Budget(0.4))
    elif other == "text":
        text_file.write_text(text_file.read_text()[::-1])
    else:
        model.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    with pytest.raises(RecipeError, match="holds another run"):
        run(recipe, model, resume=tmp_path / "run")


@pytest.mark.parametrize("calibration", [{"corpus": "self", "samples": 8}, {"samples": 4, "written": 4}], ids=["all", "beside"])
def test_what_the_model_has_written_is_not_written_again(calibration: dict[str, Any], text_file: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    text = Calibration(**{"corpus": str(text_file), "length": 32, **calibration})
    recipe = Recipe((Stage(solver=SparseGPT()),), text, (), ())
    expected, writings = run(recipe), []
    monkeypatch.setattr(sample, "written", lambda *asked: writings.append(asked) or written(*asked))
    assert_same(interrupted_and_resumed(recipe, tmp_path / "run", "model.layers.1.mlp.up_proj", lambda: tiny_model(num_hidden_layers=3)),
                expected)
    assert len(writings) == 1


def test_a_model_writes_nothing_for_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "written", lambda *asked: pytest.fail("the model has written"))
    recipe = Recipe((Stage(solver=SparseGPT(), recovery=Reconstruct()),), Calibration("self", samples=1, length=32), (), ())
    with pytest.raises(RecipeError, match="reconstruct"):
        run(recipe)


def test_an_interrupted_run_without_a_folder_writes_nothing(recipe_for: Any, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    with pytest.raises(Stop):
        run(recipe_for(), watch=stop_at("model.layers.1.self_attn.q_proj"))
    assert set(tmp_path.rglob("*")) == before
