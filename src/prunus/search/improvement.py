"""Where the hypervolume is expected to grow most, if all objectives but one are known of every candidate without a look at it."""

import math
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy

from .explored import Explored, changed
from .genome import Told
from .pareto import front
from .space import Array, Candidate

__all__ = ["likeliest"]

_POOL = 300  # candidates of all sizes that are weighed against each other, and then as many neighbours of the best, every round
_ROUNDS = 3
_BEST = 20  # whose neighbours are weighed next
_STEP = 0.08  # standard deviation of a neighbour's variable, as a share of its values
_CELLS = 400  # into which the space of costs is divided at most, where there are several
_MARGIN = 0.1  # of its range, by which the corner that volumes are measured to lies beyond the worst value


def likeliest(state: Explored, values: Array, told: Told, hidden: int, rng: random.Random, asked: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the largest expected hypervolume improvement of those that are weighed; None when all are taken.

    `values` has a row for every trial, smaller is better; its column `hidden` is modelled by a Gaussian process of the candidates
    (Matérn 5/2, a length for every variable; scikit-learn). Costs are told. The improvement (Emmerich et al. 2006) is then the integral,
    over all costs that a candidate undercuts, of the expected improvement on the best value that is had for so much. Of what is being
    valued meanwhile (`asked`) the model's mean is believed.
    """
    taken = {*state.seen, *asked}
    answered = [trial.candidate for trial in state.trials]
    members = [answered[index] for index in front(values)]
    predict = _process(state.genome.sizes, answered, values[:, hidden])

    def costs(candidates: Sequence[Candidate]) -> Array:
        rows = [told(candidate) for candidate in candidates]
        return numpy.array([[value for index, value in enumerate(row) if index != hidden] for row in rows])

    believed = numpy.concatenate((values[:, hidden], predict(asked)[0] if asked else []))
    known = _Staircase.of(costs([*answered, *asked]), believed)
    gains: dict[Candidate, float] = {}
    for turn in range(_ROUNDS + 1):
        best = sorted(gains, key=lambda candidate: -gains[candidate])[:_BEST]
        pool = _neighbours([*best, *members], state.genome.sizes, taken, rng) if turn else _drawn(state, rng, taken)
        new = [candidate for candidate in dict.fromkeys(pool) if candidate not in gains]
        if new:
            gains.update(zip(new, known.gains(costs(new), *predict(new)).tolist(), strict=True))
    return max(gains, key=lambda candidate: gains[candidate], default=None)


def _drawn(state: Explored, rng: random.Random, taken: set[Candidate]) -> list[Candidate]:
    """Of all sizes, and as the genome draws."""
    def sized() -> Candidate:
        power = 2 ** rng.uniform(-3, 3)
        return tuple(min(int(rng.random() ** power * size), size - 1) for size in state.genome.sizes)

    found = (state.genome.draw(rng) if index % 2 else sized() for index in range(_POOL))
    return [candidate for candidate in found if candidate not in taken]


def _neighbours(of: Sequence[Candidate], sizes: Sequence[int], taken: set[Candidate], rng: random.Random) -> Iterable[Candidate]:
    """One, two or three variables a little larger or smaller."""
    for _ in range(math.ceil(_POOL / _ROUNDS / len(of))):
        for candidate in of:
            found = list(candidate)
            for index in rng.sample(range(len(sizes)), min(rng.choice((1, 1, 2, 3)), len(sizes))):
                moved = round(found[index] + rng.gauss(0, _STEP * (sizes[index] - 1) + 0.5))
                found[index] = min(max(moved, 0), sizes[index] - 1)
            near = tuple(found) if tuple(found) not in taken else changed(candidate, sizes, taken, rng)
            if near is not None:
                yield near


def _process(sizes: Sequence[int], candidates: Sequence[Candidate], values: Array) -> Callable[[Sequence[Candidate]], tuple[Array, Array]]:
    """The mean and the standard deviation of a value, by candidate."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    spans = numpy.maximum(numpy.array(sizes) - 1, 1)
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(numpy.full(len(sizes), 2.0), (0.05, 50.0), nu=2.5) + WhiteKernel(1e-2, (1e-5, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variable that does not matter has a length at its bound
        process.fit(numpy.array(candidates) / spans, values)

    def predict(asked: Sequence[Candidate]) -> tuple[Array, Array]:
        mean, deviation = process.predict(numpy.array(asked) / spans, return_std=True)
        return mean, numpy.maximum(deviation, 1e-9)

    return predict


@dataclass(frozen=True)
class _Staircase:
    """The best value that is had for so much, in cells of the space of costs."""

    low: Array  # (cells, costs), where a cell begins
    high: Array
    best: Array  # (cells)

    @classmethod
    def of(cls, costs: Array, values: Array) -> "_Staircase":
        """With one cost a cell begins at every trial; with several they are fewer, and what is had in the middle of one holds for all of
        it."""
        corner = costs.max(0) + _MARGIN * (numpy.ptp(costs, axis=0) + 1e-12)
        count = len(costs) if costs.shape[1] == 1 else max(int(_CELLS ** (1 / costs.shape[1])), 2)
        edges = [numpy.unique([*numpy.quantile(column, numpy.linspace(0, 1, count), method="nearest"), end])
                 for column, end in zip(costs.T, corner, strict=True)]
        edges = [numpy.concatenate(([2 * edge[0] - edge[-1]], edge)) for edge in edges]  # below the cheapest nothing is had
        low = numpy.stack([grid.ravel() for grid in numpy.meshgrid(*(edge[:-1] for edge in edges), indexing="ij")], 1)
        high = numpy.stack([grid.ravel() for grid in numpy.meshgrid(*(edge[1:] for edge in edges), indexing="ij")], 1)
        had = (costs[None] <= ((low + high) / 2)[:, None]).all(2)
        worst = values.max() + _MARGIN * (numpy.ptp(values) + 1e-12)
        return cls(low, high, numpy.where(had, values, worst).min(1, initial=worst))

    def gains(self, costs: Array, mean: Array, deviation: Array) -> Array:
        """The hypervolume that each of several candidates is expected to add."""
        from scipy.stats import norm

        volumes = numpy.clip(self.high - numpy.maximum(self.low, costs[:, None]), 0, None).prod(2)
        away = (self.best - mean[:, None]) / deviation[:, None]
        return (volumes * deviation[:, None] * (away * norm.cdf(away) + norm.pdf(away))).sum(1)
