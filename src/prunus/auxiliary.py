"""What the matrices of an MLP might as well give and read, token by token: the auxiliary variables of SparseLLM (Bai et al. 2024)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .traits import most_precise

__all__ = ["Between", "Penalties", "Reads", "cost", "given"]

_LENGTHS = (1.0, 0.25)  # of a Gauss-Newton step, the first of which that lowers the cost is taken


@dataclass(frozen=True)
class Between:
    """What lies between an MLP's first matrices and its last one: f(z) = act(z), or of two halves act(z_gate) * z_up."""

    activation: Callable[[Tensor], Tensor]
    gated: bool  # what the first matrices give lies as gate, up

    def __call__(self, z: Float[Tensor, "tokens given"]) -> Float[Tensor, "tokens read"]:
        if not self.gated:
            return self.activation(z)
        gate, up = z.chunk(2, -1)
        return self.activation(gate) * up

    @property
    def rectifies(self) -> bool:
        """Whether f(z) = max(z, 0), for which the best z is known in closed form."""
        return not self.gated and isinstance(self.activation, nn.ReLU)

    def slopes(self, z: Float[Tensor, "tokens given"]) -> Float[Tensor, "tokens given"]:
        """d f / d z, element by element."""
        bent, up = z.chunk(2, -1) if self.gated else (z, None)
        with torch.enable_grad():
            bent = bent.detach().requires_grad_()
            active = self.activation(bent)
            (slope,) = torch.autograd.grad(active.sum(), bent)
        return slope if up is None else torch.cat([slope * up, active.detach()], -1)

    def summed(self, values: Float[Tensor, "tokens given"]) -> Float[Tensor, "tokens read"]:
        """Over the parts of z that one element of f(z) depends on."""
        if not self.gated:
            return values
        gate, up = values.chunk(2, -1)
        return gate + up

    def spread(self, values: Shaped[Tensor, "tokens read"]) -> Shaped[Tensor, "tokens given"]:
        """The same for each of those parts."""
        return torch.cat([values, values], -1) if self.gated else values


@dataclass(frozen=True)
class Penalties:
    """alpha |z - m|^2 + beta |y - W p|^2 + gamma |p - f(z)|^2 of one token, all three above 0 (Bai et al. 2024, eq. 3)."""

    alpha: float  # on what the first matrices would have to give, z, and give, m
    beta: float  # on what the last matrix is to give, y, and would give
    gamma: float  # on what it would have to read, p, and what z makes of that


def cost(between: Between, z: Float[Tensor, "tokens given"], p: Float[Tensor, "tokens read"], m: Float[Tensor, "tokens given"],
         y: Float[Tensor, "tokens out"], weight: Float[Tensor, "out read"], penalties: Penalties) -> Float[Tensor, "tokens"]:
    """What `Reads` and `given` lower in turn."""
    return penalties.alpha * (z - m).square().sum(-1) + penalties.beta * (y - p @ weight.T).square().sum(-1) \
        + penalties.gamma * (p - between(z)).square().sum(-1)


class Reads:
    """The best p for one last matrix: (beta W^T W + gamma I)^-1 (beta W^T y + gamma f), a ridge regression.

    In the form f + W^T (W W^T + gamma / beta I)^-1 (y - W f), whose system is as small as the outputs are few, and positive definite
    whatever W is.
    """

    def __init__(self, weight: Float[Tensor, "out read"], penalties: Penalties) -> None:
        gram = (weight @ weight.T).to(most_precise(weight.device))
        gram.diagonal().add_(penalties.gamma / penalties.beta)
        self._weight, self._inverse = weight, torch.cholesky_inverse(torch.linalg.cholesky(gram)).to(weight)

    def __call__(self, f: Float[Tensor, "tokens read"], y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens read"]:
        return torch.addmm(f, (y - f @ self._weight.T) @ self._inverse, self._weight)


def given(between: Between, z: Float[Tensor, "tokens given"], p: Float[Tensor, "tokens read"], m: Float[Tensor, "tokens given"],
          penalties: Penalties) -> Float[Tensor, "tokens given"]:
    """A z that costs no more, element by element: the best one of a rectifier, otherwise after a step of Gauss and Newton's."""
    return _rectified(p, m, penalties) if between.rectifies else _stepped(between, z, p, m, penalties)


def _rectified(p: Tensor, m: Tensor, penalties: Penalties) -> Tensor:
    """The best z on either side of 0; of the two the cheaper (Bai et al. 2024, eq. 12)."""
    alpha, gamma = penalties.alpha, penalties.gamma
    above, below = ((alpha * m + gamma * p) / (alpha + gamma)).clamp_min_(0), m.clamp_max(0)
    price = [alpha * (z - m).square() + gamma * (p - z.clamp_min(0)).square() for z in (above, below)]
    return torch.where(price[0] <= price[1], above, below)


def _stepped(between: Between, z: Tensor, p: Tensor, m: Tensor, penalties: Penalties) -> Tensor:
    """f(z) taken as linear, the best z is m and a multiple of the slopes (Sherman and Morrison)."""
    alpha, gamma = penalties.alpha, penalties.gamma
    slopes = between.slopes(z)
    pull = alpha * (m - z) + gamma * slopes * between.spread(p - between(z))
    along = between.summed(slopes * pull) / (alpha + gamma * between.summed(slopes.square()))
    step = (pull - gamma * slopes * between.spread(along)) / alpha

    def price(z: Tensor) -> Tensor:
        return alpha * between.summed((z - m).square()) + gamma * (p - between(z)).square()

    best, least = z, price(z)
    waiting = torch.ones_like(p, dtype=torch.bool)
    for length in _LENGTHS:
        tried = z + length * step
        lower = waiting & (price(tried) < least)
        best = torch.where(between.spread(lower), tried, best)
        waiting &= ~lower
    return best
