"""Units that go with probabilities of their own: draws, and what their values say of the probabilities."""

from typing import Any

import numpy

from .space import Array

__all__ = ["drawn", "numbers", "slope"]


def drawn(going: Array, count: int, rng: Any) -> Array:
    """Draws (count, units), 1 where a unit goes. Those of the second half share their uniform numbers with those of the first
    (antithetic pairs), which takes some noise out."""
    uniform = rng.random((count // 2, len(going)))
    return (numpy.concatenate([uniform, 1 - uniform]) < going).astype(float)


def numbers(values: Array) -> Array:
    """Values that are none count as the worst that are."""
    finite = numpy.isfinite(values)
    return numpy.where(finite, values, values[finite].max() if finite.any() else 0.0)


def slope(going: Array, draws: Array, advantages: Array) -> Array:
    """The policy gradient of the expected value, estimated from draws, with every unit's scaled by the deviation of its draws
    as in the code of Gao et al. 2025.

    Without bias when what was taken from a draw's value does not depend on that draw.
    """
    score = (draws - going) / numpy.sqrt((going + 1e-3) * (1 - going + 1e-3))
    found: Array = advantages @ score / len(advantages)
    return found
