"""Round to nearest by hand, and GPTQ beside its equations written out in the plainest way."""

import pytest
import torch
from torch import Tensor

from prunus.errors import RecipeError
from prunus.quantisation import Grid, Rounded
from prunus.quantisers.gptq import GPTQ
from prunus.quantisers.rtn import RTN

from ..problems import generator, inputs, stats_of


def test_round_to_nearest_by_hand() -> None:
    """The largest weight is 7.5 steps, so it is half a step from its code, which is the most that any weight can be."""
    weight = torch.tensor([[1.5, -0.75, 0.31, 0.0], [-3.0, 0.2, 0.19, 1.0]])
    found = RTN().quantise(weight, weight != 0, Grid(4, 4), stats_of(inputs(0, 4)))
    assert found.scale.flatten().tolist() == pytest.approx([0.2, 0.4])
    assert found.codes.tolist() == [[7, -4, 2, 0], [-7, 0, 0, 2]]
    assert found.weight.flatten().tolist() == pytest.approx([1.4, -0.8, 0.4, 0.0, -2.8, 0.0, 0.0, 0.8])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [0, 4, 16])
def test_no_weight_is_further_than_half_a_step_from_what_it_becomes(bits: int, group: int) -> None:
    weight = torch.randn(64, 48, generator=generator(1))
    found = RTN().quantise(weight, weight != 0, Grid(bits, group), stats_of(inputs(0, 48)))
    width = group or 48
    step = found.scale.repeat_interleave(width, 1)
    assert ((found.weight - weight).abs() <= step * 0.5001).all()
    assert torch.allclose(found.scale, weight.view(64, -1, width).abs().amax(2) * 2 / (2**bits - 1))


def eliminated(weight: Tensor, mask: Tensor, grid: Grid, gram: Tensor) -> Tensor:
    """Frantar et al. 2023, eq. 2 and 3, a column at a time in float64, those that read most power first: after each, its row and
    column are eliminated from the inverse."""
    work, inverse = weight.double().clone(), torch.linalg.inv(gram.double())
    done = torch.zeros_like(work)
    for column in gram.diagonal().argsort(descending=True).tolist():
        start = column - column % grid.group
        scale = grid.fit(weight[:, start : start + grid.group])
        done[:, column] = grid.codes(work[:, column].float(), scale) * scale * mask[:, column]
        gap = (work[:, column] - done[:, column]) / inverse[column, column]
        work -= gap[:, None] * inverse[column]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return done.float()


@pytest.mark.parametrize("pruned", [0.0, 0.5])
@pytest.mark.parametrize("group", [8, 40])
def test_gptq_is_its_equations(pruned: float, group: int) -> None:
    """40 columns: one product between, as the code takes 32 at a time."""
    weight, x = torch.randn(16, 40, generator=generator(3)), inputs(3, 40)
    mask = torch.rand(16, 40, generator=generator(4)) >= pruned
    stats = stats_of(x)
    found = GPTQ(damping=0.05).quantise(weight * mask, mask, Grid(4, group), stats)
    expected = eliminated(weight * mask, mask, Grid(4, group), stats.damped(0.05))
    assert (found.weight - expected).abs().max() < 1e-4


def test_a_matrix_that_reads_independent_inputs_is_rounded_to_nearest() -> None:
    """With a diagonal Gram no other weight can make up for an error."""
    weight = torch.randn(8, 16, generator=generator(5))
    stats = stats_of(torch.eye(16) * 3)
    near, calibrated = (kind.quantise(weight, weight != 0, Grid(4, 8), stats) for kind in (RTN(), GPTQ()))
    assert torch.equal(near.codes, calibrated.codes)


def test_rounded_weights_are_codes_times_scales() -> None:
    found = Rounded(torch.tensor([[1, -2, 3, 0]], dtype=torch.int8), torch.tensor([[0.5, 2.0]]))
    assert found.weight.tolist() == [[0.5, -1.0, 6.0, 0.0]]


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: Grid(bits=3), "bits = 3: expected 4 or 8"),
    (lambda: Grid(group=-1), "group = -1: expected at least 1 input, or 0 for a whole row"),
    (lambda: Grid(group=128).check(576, "blocks.0.q"), r"group = 128: blocks\.0\.q has 576 inputs, .* Use 64 or 32 or 16, or 0"),
    (lambda: GPTQ(damping=-1.0), "no negative damping"),
])
def test_what_cannot_be_is_refused(make: object, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        make()  # type: ignore[operator]
