"""What calibration remembers about a layer's inputs: streaming moments, and the factors that sites share."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import CalibrationError, NotDefinite
from .traits import most_precise

__all__ = ["BranchStats", "ChannelLoss", "ChannelSum", "InputStats", "LossNeeds", "LossStats", "Needs", "finite", "most"]

Needs = Literal["nothing", "power", "gram"]  # ascending cost; a plug-in declares the least it can live on
Level = Literal["mean", "median"]  # of the Gram's diagonal
ChannelSum = Literal["vector", "element", "second", "mixed"]
T = TypeVar("T")
_ORDER: tuple[Needs, ...] = ("nothing", "power", "gram")
_PANEL = 256  # columns per panel of the Gram; only the panels on and above the diagonal are computed


def _panels(width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, width, _PANEL):
        yield start, min(start + _PANEL, width)


def most(*needs: Needs) -> Needs:
    """The greatest of several needs."""
    return max(needs, key=_ORDER.index, default="nothing")


def finite(values: Tensor) -> bool:
    """Whether all values are numbers and none is infinite, in one pass and without a mask."""
    return values.numel() == 0 or bool(torch.isfinite(torch.stack(values.aminmax())).all())


@dataclass(frozen=True)
class LossNeeds:
    """What a plug-in wants to know of the loss, beside the inputs: how much backward passes may cost."""

    curvature: bool = False  # the trace too, for which the loss is differentiated twice
    sequences: int = 16  # of the calibration text
    channels: tuple[ChannelSum, ...] = ()  # these sums over channels (ChannelLoss), and not what is known of matrices (LossStats)


@dataclass(frozen=True)
class LossStats:
    """How the loss (cross-entropy of the next token, summed) depends on one matrix.

    Norms are multiplied token by token: a few tokens of massive activations, whose gradients are small, count for little.
    """

    output: float  # E ||d loss / d y||^2 ||y||^2 over tokens, at the matrix's output y
    stream: float  # the same at what the matrix's block gives to the next
    trace: float | None = None  # of the Hessian of the mean loss in the matrix's weights; None when not asked for


@dataclass(frozen=True)
class ChannelLoss:
    """How the loss (cross-entropy of the next token, mean over tokens) depends on the channels of one site.

    Sums over all weights w of a channel, rows of its producers and columns of its consumer, with g the gradient of the loss
    over all sequences and F the mean over sequences of the squares of their own gradients. Of a branch, each output of each of
    its matrices counts as a channel. None is what was not asked for.
    """

    vector: Float[Tensor, "channels"] | None = None  # sum w g, with its sign: how fast the loss grows when the channel is scaled
    element: Float[Tensor, "channels"] | None = None  # sum |w g|
    second: Float[Tensor, "channels"] | None = None  # sum w^2 F
    mixed: Float[Tensor, "channels"] | None = None  # sum |w g - w^2 F / 2|

    def sums(self, name: ChannelSum) -> Float[Tensor, "channels"]:
        """One of them, which was asked for."""
        found: Tensor | None = getattr(self, name)
        assert found is not None
        return found


@dataclass(frozen=True)
class BranchStats:
    """What a residual branch does to the stream of hidden states that it is added to; means over tokens."""

    cosine: float  # between the stream before the branch and behind it
    relative: float  # the branch's norm, over that of the stream before it
    before: float  # root mean square norm of the stream before
    added: float  # and of what the branch adds
    block: float  # cosine between what the branch's whole block is given and what it gives
    entry: Float[Tensor, "sequences width"]  # what the block is given of the last token of every sequence, scaled to length 1
    exit: Float[Tensor, "sequences width"]  # and what it gives; of neighbouring blocks one tensor, so that there is one more than blocks

    def joined(self, other: "BranchStats", share: float) -> "BranchStats":
        """Over the tokens of both, of which this one's are a share."""
        def mean(mine: float, theirs: float) -> float:
            return share * mine + (1 - share) * theirs

        return BranchStats(mean(self.cosine, other.cosine), mean(self.relative, other.relative),
                           mean(self.before**2, other.before**2) ** 0.5, mean(self.added**2, other.added**2) ** 0.5,
                           mean(self.block, other.block), torch.cat([self.entry, other.entry]), torch.cat([self.exit, other.exit]))


class InputStats:
    """Moments of the inputs x that one or more matrices read, averaged over tokens, in float32.

    The one mutable noun: an accumulator. Factorisations of the Gram are kept, so that sites
    that read the same activation share them.
    """

    def __init__(self, width: int, needs: Needs = "gram", device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32, name: str = "inputs", readers: int = 1, asymmetric: bool = False) -> None:
        self.name = name
        self.readers = readers  # how many matrices read these inputs, and may share what is kept here
        self.tokens = 0
        self.needs = needs
        self._sum = torch.zeros(width, device=device, dtype=dtype)
        self._squares = torch.zeros(width, device=device, dtype=dtype)
        self._products = torch.zeros(width, width, device=device, dtype=dtype) if needs == "gram" else None
        self._drifts = torch.zeros(width, width, device=device, dtype=dtype) if asymmetric else None  # sum (x_dense - x) x^T
        self._finished = False  # whether the products are E[x x^T] as a whole, or sums on and above the diagonal
        self._kept: dict[Hashable, Any] = {}

    @torch.no_grad()
    def update(self, x: Float[Tensor, "*batch in"], weights: Float[Tensor, "*tokens"] | None = None,
               dense: Float[Tensor, "*others in"] | None = None) -> None:
        """Add a batch of inputs; all leading dimensions are tokens.

        `weights`, of which the mean over all tokens is to be 1, count them more or less; `dense` is what the dense model reads
        there, of asymmetric moments. Raises CalibrationError when these are of other tokens.
        """
        rows = x.reshape(-1, x.shape[-1]).to(self._sum)
        if dense is not None and self._drifts is not None:
            self._check_pair(len(rows), dense.numel() // dense.shape[-1])
            moved = dense.reshape(rows.shape).to(rows) - rows
            rows, moved = (self._weighted(values, weights) for values in (rows, moved))
            self._drifts.addmm_(moved.T, rows)
        else:
            rows = self._weighted(rows, weights)
        self._reopen()
        self.tokens += len(rows)
        self._sum += self._weighted(rows, weights).sum(0)
        if self._products is None:
            self._squares += rows.square().sum(0)
            return
        for start, stop in _panels(rows.shape[1]):
            self._products[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
        self._squares = self._products.diagonal().clone()

    def _weighted(self, rows: Float[Tensor, "tokens in"], weights: Tensor | None) -> Float[Tensor, "tokens in"]:
        """Times the roots, so that products are multiplied by the weights."""
        if weights is None:
            return rows
        self._check_pair(len(rows), weights.numel())
        return rows * weights.reshape(-1, 1).to(rows).sqrt()

    def _check_pair(self, found: int, others: int) -> None:
        if found != others:
            raise CalibrationError(f"{self.name}: it reads {found} rows where {others} tokens pass, which cannot be told apart. "
                                   "Leave asymmetry and fisher out of the stage's target.")

    def merge(self, other: "InputStats") -> None:
        """Add the moments of other tokens; the order does not matter beyond rounding."""
        self._reopen()
        other._reopen()
        self.tokens += other.tokens
        self._sum += other._sum.to(self._sum)
        self._squares += other._squares.to(self._sum)
        if self._products is not None and other._products is not None:
            self._products += other._products.to(self._sum)
        if self._drifts is not None and other._drifts is not None:
            self._drifts += other._drifts.to(self._sum)

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
        if self._products is None:
            raise CalibrationError(f"{self.name}: no Gram matrix was collected; the plug-in must declare needs='gram'.")
        if not self._finished:  # in place: a second matrix of this size may be gigabytes
            self._finished = True
            for start, stop in _panels(len(self._products)):
                self._products[stop:, start:stop] = self._products[start:stop, stop:].T
                panel = self._products[start:stop, start:stop]
                panel.copy_(panel.triu() + panel.triu(1).T)
            self._products.div_(max(self.tokens, 1))
        return self._products

    def drift(self, damping: float) -> Float[Tensor, "in in"]:
        """E[(x' - x) x^T] (G + damping)^-1, with x' what the dense model reads: the best guess of x' - x from x, shared.

        Raises CalibrationError when it was not collected, or the damped Gram is not positive definite.
        """
        drifts = self._drifts
        if drifts is None:
            raise CalibrationError(f"{self.name}: nothing was collected of what the dense model reads.")

        def guess() -> Tensor:
            factor = self._inverse_cholesky(self.damped(damping), damping)  # not shared: it is as large, and not all solvers need one
            return (drifts / max(self.tokens, 1)) @ factor.T @ factor

        return self.shared(("drift", damping), guess)

    def energy(self, weight: Float[Tensor, "out in"]) -> float:
        """E ||W x||^2 = tr(W E[x x^T] W^T), from the panels on and above the diagonal of the Gram."""
        total = 0.0
        for start, stop in _panels(len(self.gram)):
            products = (weight[:, start:stop] @ self.gram[start:stop, start:]).mul_(weight[:, start:])
            sums = products.sum(0, dtype=most_precise(products.device))
            total += float(2 * sums.sum() - sums[: stop - start].sum())
        return total

    def _reopen(self) -> None:
        """Go back to sums, to which more tokens can be added; what was shared is out of date."""
        self._kept.clear()
        if self._products is not None and self._finished:
            self._products.triu_().mul_(max(self.tokens, 1))
        self._finished = False

    def forget(self) -> None:
        """Drop what sites have shared."""
        self._kept.clear()

    def check(self) -> None:
        """Refuse moments that cannot be used. Raises CalibrationError that names the site."""
        if self.tokens == 0:
            raise CalibrationError(f"{self.name}: no calibration token reached it. Is the module used by the model's forward?")
        if not finite(self._squares):
            bad = int((~torch.isfinite(self._squares)).sum())
            raise CalibrationError(f"{self.name}: {bad} of {len(self._squares)} inputs are not finite. "
                                   "The model overflows in this dtype or its weights are damaged; try --dtype float32.")

    def damped(self, damping: float, level_of: Level = "mean") -> Float[Tensor, "in in"]:
        """The Gram with `damping` times the mean (or the median) of its diagonal added to the diagonal.

        A dead input (never active) gets that level itself, so that the matrix is positive definite whatever the data.
        """
        gram = self.gram.clone()
        diagonal = gram.diagonal()
        dead = diagonal <= 0
        alive = diagonal[~dead] if bool((~dead).any()) else torch.ones_like(diagonal)
        level = alive.median() if level_of == "median" else alive.sum() / len(diagonal)
        diagonal += damping * level
        diagonal[dead] = level
        return gram

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, kept under `key` until the next update, so that sites that read the same inputs share it."""
        if key not in self._kept:
            self._kept[key] = make()
        value: T = self._kept[key]
        return value

    def inverse_cholesky(self, damping: float, order: Int[Tensor, "in"] | None = None) -> Float[Tensor, "in in"]:
        """Upper Cholesky factor U of the inverse of the damped Gram, inverse = U^T U; shared per damping. With an `order`, of the Gram
        with the inputs in that order, which is not shared.

        Raises CalibrationError when the damped Gram is not positive definite.
        """
        if order is not None:
            return self._inverse_cholesky(self.damped(damping)[order][:, order], damping)
        return self.shared(("inverse_cholesky", damping), lambda: self._inverse_cholesky(self.damped(damping), damping))

    def _inverse_cholesky(self, damped: Tensor, damping: float) -> Tensor:
        """In float32, and in float64 where the damped Gram is not positive definite in float32.

        With the inputs in reverse order G = L L^T; put back, L becomes an upper factor R with G = R R^T, and U = R^-1:
        one factorisation and one triangular inverse instead of two factorisations and a whole inverse.
        """
        for dtype in (torch.float32, most_precise(damped.device)):
            lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1).to(dtype))
            if not int(failed):
                return _inverse_of_upper(lower.flip(0, 1)).to(damped)
        raise NotDefinite(self.name, damping)


def _inverse_of_upper(upper: Tensor) -> Tensor:
    """By halves, so that most of the work is products: of a triangular solve with the identity, half is spent on zeros."""
    size = len(upper)
    if size <= 256:
        return torch.linalg.solve_triangular(upper, torch.eye(size, dtype=upper.dtype, device=upper.device), upper=True)
    half = size // 2
    inverse = torch.zeros_like(upper)
    first, second = _inverse_of_upper(upper[:half, :half]), _inverse_of_upper(upper[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, second
    torch.mm(first @ upper[:half, half:], second.neg(), out=inverse[:half, half:])
    return inverse
