"""What calibration remembers about a layer's inputs: streaming moments, and the factors that sites share."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import CalibrationError

__all__ = ["InputStats", "Needs", "most"]

Needs = Literal["nothing", "power", "gram"]  # ascending cost; a plug-in declares the least it can live on
_ORDER: tuple[Needs, ...] = ("nothing", "power", "gram")
_PANEL = 512  # columns per panel of the Gram; only the panels on and above the diagonal are computed


def most(*needs: Needs) -> Needs:
    """The greatest of several needs."""
    return max(needs, key=_ORDER.index, default="nothing")


class InputStats:
    """Moments of the inputs x that one or more matrices read, averaged over tokens, in float32.

    The one mutable noun: an accumulator. Factorisations of the Gram are kept, so that sites
    that read the same activation share them.
    """

    def __init__(self, width: int, needs: Needs = "gram", device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32, name: str = "inputs") -> None:
        self.name = name
        self.tokens = 0
        self.needs = needs
        self._sum = torch.zeros(width, device=device, dtype=dtype)
        self._squares = torch.zeros(width, device=device, dtype=dtype)
        self._products = torch.zeros(width, width, device=device, dtype=dtype) if needs == "gram" else None
        self._kept: dict[tuple[str, float], tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def update(self, x: Float[Tensor, "*batch in"]) -> None:
        """Add a batch of inputs; all leading dimensions are tokens."""
        rows = x.reshape(-1, x.shape[-1]).to(self._sum)
        self._kept.clear()
        self.tokens += len(rows)
        self._sum += rows.sum(0)
        if self._products is None:
            self._squares += rows.square().sum(0)
            return
        width = rows.shape[1]
        for start in range(0, width, _PANEL):
            stop = min(start + _PANEL, width)
            self._products[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
        self._squares = self._products.diagonal().clone()

    def merge(self, other: "InputStats") -> None:
        """Add the moments of other tokens; the order does not matter beyond rounding."""
        self._kept.clear()
        self.tokens += other.tokens
        self._sum += other._sum.to(self._sum)
        self._squares += other._squares.to(self._sum)
        if self._products is not None and other._products is not None:
            self._products += other._products.to(self._sum)

    @property
    def mean(self) -> Float[Tensor, "in"]:
        """E[x]."""
        return self._sum / max(self.tokens, 1)

    @property
    def power(self) -> Float[Tensor, "in"]:
        """E[x^2]; Wanda calls its sum the scaler row."""
        return self._squares / max(self.tokens, 1)

    def rms(self) -> Float[Tensor, "in"]:
        """Root mean square of every input."""
        return self.power.sqrt()

    @property
    def gram(self) -> Float[Tensor, "in in"]:
        """E[x x^T]; the layer Hessian is twice this. Raises CalibrationError when it was not collected."""
        if ("gram", 0.0) not in self._kept:
            if self._products is None:
                raise CalibrationError(f"{self.name}: no Gram matrix was collected; the plug-in must declare needs='gram'.")
            upper = self._products.triu()
            full = (upper + upper.triu(1).T).div_(max(self.tokens, 1))
            self._kept["gram", 0.0] = (full,)
        return self._kept["gram", 0.0][0]

    def check(self) -> None:
        """Refuse moments that cannot be used. Raises CalibrationError that names the site."""
        if self.tokens == 0:
            raise CalibrationError(f"{self.name}: no calibration token reached it. Is the module used by the model's forward?")
        if not bool(torch.isfinite(self._squares).all()):
            bad = int((~torch.isfinite(self._squares)).sum())
            raise CalibrationError(f"{self.name}: {bad} of {len(self._squares)} inputs are not finite. "
                                   "The model overflows in this dtype or its weights are damaged; try --dtype float32.")

    def damped(self, damping: float) -> Float[Tensor, "in in"]:
        """The Gram with `damping` times the mean of its diagonal added to the diagonal.

        A dead input (never active) gets that mean itself, so that the matrix is positive definite whatever the data.
        """
        gram = self.gram.clone()
        diagonal = gram.diagonal()
        mean = diagonal.mean()
        level = mean if bool(mean > 0) else torch.ones_like(mean)
        dead = diagonal <= 0
        diagonal += damping * level
        diagonal[dead] = level
        return gram

    def inverse_cholesky(self, damping: float) -> Float[Tensor, "in in"]:
        """Upper Cholesky factor U of the inverse of the damped Gram, inverse = U^T U; cached per damping.

        Computed in float64 on the CPU. Raises CalibrationError when the damped Gram is not positive definite.
        """
        if ("inverse_cholesky", damping) not in self._kept:
            damped = self.damped(damping)
            wide = _exact(damped)
            lower, failed = torch.linalg.cholesky_ex(wide)
            if int(failed):
                raise CalibrationError(f"{self.name}: Gram matrix not positive definite after damping {damping}. "
                                       "Raise `damping` or calibrate with more tokens.")
            upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
            self._kept["inverse_cholesky", damping] = (upper.to(damped),)
        return self._kept["inverse_cholesky", damping][0]

    def cached(self, key: str, damping: float) -> tuple[Tensor, ...] | None:
        """What `cache` kept under the same key for these moments; None if nothing."""
        return self._kept.get((key, damping))

    def cache(self, key: str, damping: float, value: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keep a factorisation for the other sites that read the same inputs, until the next update."""
        self._kept[key, damping] = value
        return value


def _exact(matrix: Tensor) -> Tensor:
    """Factorisations run in float64 on the CPU; a GPU keeps float32, whose float64 is many times slower."""
    return matrix.double() if matrix.device.type == "cpu" else matrix
