"""The laws again on a CUDA device, and the same result as on the CPU up to its rounding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prunus.calibration.placement import Placement
from prunus.granularity import Granularity, snap
from prunus.pipeline import prune
from prunus.problem import LayerProblem
from prunus.recipe import Recipe
from prunus.solvers.alps import ALPS
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT
from prunus.stats import InputStats

from ..problems import inputs, problem, solver_shapes
from ..tiny import FAMILIES, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.gpu
every_shape = pytest.mark.parametrize(("solver", "granularity"), solver_shapes())


def on_cuda(seed: int, granularity: Granularity, x: torch.Tensor | None = None, **settings: Any) -> tuple[LayerProblem, LayerProblem]:
    """The same problem on the CPU and on the device."""
    asked = problem(seed, granularity=granularity, x=x, **settings)
    stats = InputStats(asked.weight.shape[1], device="cuda", name="blocks.3.down")
    stats.update((inputs(seed, asked.weight.shape[1]) if x is None else x).cuda())
    return asked, LayerProblem(asked.weight.cuda(), stats, granularity, asked.sparsity, "blocks.3.down")


@every_shape
def test_reaches_exactly_what_snap_says_on_the_device(solver: Any, granularity: Granularity) -> None:
    asked, there = on_cuda(1, granularity)
    solution = solver.solve(there)
    assert solution.weight.device.type == solution.mask.device.type == "cuda"
    removed = int((~solution.mask).sum())
    assert removed == round(snap(asked.sparsity, (12, 24), granularity) * 288)
    assert (solution.weight[~solution.mask] == 0).all()


@every_shape
def test_the_error_is_the_cpu_s_up_to_rounding(solver: Any, granularity: Granularity) -> None:
    asked, there = on_cuda(2, granularity)
    ours, theirs = there.error(solver.solve(there).weight), asked.error(solver.solve(asked).weight)
    assert ours == pytest.approx(theirs, rel=0.02)


@every_shape
def test_the_same_problem_has_the_same_answer(solver: Any, granularity: Granularity) -> None:
    answers = [solver.solve(on_cuda(3, granularity)[1]) for _ in range(2)]
    assert torch.equal(answers[0].mask, answers[1].mask)
    assert torch.equal(answers[0].weight, answers[1].weight)


@every_shape
@pytest.mark.parametrize("case", ["dead inputs", "one token", "all inputs dead"])
def test_hard_problems_work_on_the_device(case: str, solver: Any, granularity: Granularity) -> None:
    x = inputs(4, tokens=1) if case == "one token" else inputs(4)
    if case != "one token":
        x[:, [0, 5] if case == "dead inputs" else slice(None)] = 0
    solution = solver.solve(on_cuda(4, granularity, x)[1])
    assert torch.isfinite(solution.weight).all()


@pytest.mark.parametrize("solver", [Mask(), SparseGPT(), ALPS()], ids=["wanda", "sparsegpt", "alps"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_on_the_device_gives_the_cpu_s_model_up_to_rounding(family: str, solver: Any,
                                                                    recipe_for: Callable[..., Recipe]) -> None:
    """Errors of every site within 5 %: a mask may differ where two saliencies are nearly equal."""
    recipe = recipe_for(solver=solver)
    here = prune(tiny_model(family), recipe, tokenizer=tiny_tokenizer()).report
    model = tiny_model(family)
    there = prune(model, recipe, tokenizer=tiny_tokenizer(), placement=Placement("cuda")).report
    assert next(model.parameters()).device.type == "cpu"
    assert there.sparsity == here.sparsity
    for ours, theirs in zip(there.sites, here.sites, strict=True):
        assert ours.reached == theirs.reached
        assert (ours.error is None and theirs.error is None) or ours.error == pytest.approx(theirs.error, rel=0.05)


@pytest.mark.parametrize("activations", ["memory", "device", "disk"])
def test_a_model_that_lives_on_the_device_stays_there_wherever_activations_wait(activations: Any,
                                                                                recipe_for: Callable[..., Recipe]) -> None:
    model = tiny_model().cuda()
    report = prune(model, recipe_for(), tokenizer=tiny_tokenizer(), placement=Placement("cuda", activations)).report
    assert next(model.parameters()).device.type == "cuda"
    assert report.sparsity == 0.5
