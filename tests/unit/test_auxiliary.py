"""Free values between the matrices of an MLP: closed forms against brute force, and a cost that never rises."""

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from prunus.auxiliary import Between, Penalties, Reads, cost, given

from ..problems import generator

PENALTIES = [Penalties(1.0, 1.0, 1.0), Penalties(0.1, 20.0, 3.0), Penalties(7.0, 0.02, 0.3)]
every_penalty = pytest.mark.parametrize("penalties", PENALTIES, ids=["equal", "free", "tied"])
FORMS = {"relu": Between(nn.ReLU(), False), "gelu": Between(nn.GELU(), False), "silu, gated": Between(nn.SiLU(), True),
         "relu, gated": Between(nn.ReLU(), True)}
every_form = pytest.mark.parametrize("between", FORMS.values(), ids=FORMS)


def drawn(between: Between, seed: int = 0, tokens: int = 40, width: int = 12, out: int = 6) -> dict[str, Tensor]:
    rng = generator(seed)
    many = 2 * width if between.gated else width
    return {"z": torch.randn(tokens, many, generator=rng), "m": 2 * torch.randn(tokens, many, generator=rng),
            "p": 2 * torch.randn(tokens, width, generator=rng), "y": torch.randn(tokens, out, generator=rng),
            "weight": torch.randn(out, width, generator=rng) / width**0.5}


@every_penalty
def test_what_is_read_is_the_least_squares_solution_of_the_stacked_system(penalties: Penalties) -> None:
    """Rows sqrt(beta) W aimed at y, and sqrt(gamma) I aimed at f."""
    parts = drawn(FORMS["relu"])
    rows = torch.cat([penalties.beta**0.5 * parts["weight"], penalties.gamma**0.5 * torch.eye(12)]).double().numpy()
    aims = torch.cat([penalties.beta**0.5 * parts["y"], penalties.gamma**0.5 * parts["p"]], 1).double().numpy()
    expected = numpy.linalg.lstsq(rows, aims.T, rcond=None)[0].T
    found = Reads(parts["weight"], penalties)(parts["p"], parts["y"]).double().numpy()
    assert numpy.abs(found - expected).max() < 1e-4 * numpy.abs(expected).max()


def test_a_last_matrix_of_zeros_reads_what_it_is_given() -> None:
    f = torch.randn(5, 12, generator=generator(1))
    assert torch.equal(Reads(torch.zeros(6, 12), PENALTIES[0])(f, torch.ones(5, 6)), f)


@every_penalty
def test_a_rectifier_s_best_z_is_as_cheap_as_the_best_of_a_fine_grid(penalties: Penalties) -> None:
    parts = drawn(FORMS["relu"])
    z = given(FORMS["relu"], parts["z"], parts["p"], parts["m"], penalties)
    grid = torch.linspace(-12, 12, 24001)
    m, p = parts["m"].flatten(), parts["p"].flatten()
    price = torch.stack([(penalties.alpha * (grid - a).square() + penalties.gamma * (b - grid.clamp(min=0)).square()).min()
                         for a, b in zip(m, p, strict=True)])
    mine = (penalties.alpha * (z.flatten() - m).square() + penalties.gamma * (p - z.flatten().clamp(min=0)).square())
    assert bool((mine <= price * (1 + 1e-5) + 1e-6).all())
    assert bool((z > 0).any() and (z < 0).any())  # both cases were met


def test_steps_of_a_gated_form_come_close_to_the_best_of_a_grid_over_both_parts() -> None:
    """Gauss and Newton find a minimum, not always the lowest one."""
    between, parts, penalties = FORMS["silu, gated"], drawn(FORMS["silu, gated"]), PENALTIES[0]
    gate, up = (part.flatten() for part in parts["m"].chunk(2, -1))
    p, grid = parts["p"].flatten(), torch.linspace(-9, 9, 361)

    def price(s: Tensor, u: Tensor) -> Tensor:
        return (s - gate).square() + (u - up).square() + (p - silu(s) * u).square()

    best = torch.stack([price(s, grid[:, None]).amin(0) for s in grid]).amin(0)
    z, prices = parts["m"], []
    for _ in range(40):
        z = given(between, z, parts["p"], parts["m"], penalties)
        prices.append(price(*(part.flatten() for part in z.chunk(2, -1))))
    few, many = prices[1], prices[-1]
    assert bool((many >= best - 0.1).all())  # the grid misses its minima by as much
    assert float(many.mean()) < 1.1 * float(best.mean())
    assert float(few.mean()) < 1.3 * float(best.mean())
    assert float(price(gate, up).mean()) > 3 * float(best.mean())


@every_form
def test_slopes_are_those_of_finite_differences(between: Between) -> None:
    z = drawn(between)["z"].double()
    half, move = z.shape[1] // 2, 1e-6
    found = between.slopes(z)
    for part in range(2) if between.gated else [None]:
        step = torch.zeros_like(z)
        step[:, slice(None) if part is None else slice(part * half, (part + 1) * half)] = move
        expected = (between(z + step) - between(z - step)) / (2 * move)
        mine = found if part is None else found.chunk(2, -1)[part]
        assert float((mine - expected).abs().max()) < 1e-5


@every_penalty
@every_form
def test_updates_in_turn_never_cost_more_on_any_token(between: Between, penalties: Penalties) -> None:
    parts = drawn(between)
    z, m, y, weight = parts["z"], parts["m"], parts["y"], parts["weight"]
    p = between(z)
    reads, before = Reads(weight, penalties), cost(between, z, p, m, y, weight, penalties)
    first = before.sum()
    for _ in range(6):
        p = reads(between(z), y)
        middle = cost(between, z, p, m, y, weight, penalties)
        z = given(between, z, p, m, penalties)
        after = cost(between, z, p, m, y, weight, penalties)
        assert bool((middle <= before * (1 + 1e-5) + 1e-6).all())
        assert bool((after <= middle * (1 + 1e-5) + 1e-6).all())
        before = after
    assert float(before.sum()) < 0.8 * float(first)


@every_form
def test_what_is_free_is_the_model_s_own_where_the_model_gives_what_it_is_to_give(between: Between) -> None:
    parts = drawn(between)
    z = parts["z"]
    y = between(z) @ parts["weight"].T
    p = Reads(parts["weight"], PENALTIES[0])(between(z), y)
    assert float((p - between(z)).abs().max()) < 1e-5
    assert float((given(between, z, p, z, PENALTIES[0]) - z).abs().max()) < 1e-5


def test_a_huge_and_a_tiny_value_give_numbers() -> None:
    between: Any = FORMS["silu, gated"]
    z = torch.tensor([[1e4, -1e4, 1e-30, 0.0, 1e4, 1e4, -1e-30, 0.0]])
    found = given(between, z, torch.full((1, 4), -1e4), -z, PENALTIES[1])
    assert bool(torch.isfinite(found).all())
