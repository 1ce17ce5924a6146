"""Better supports by exchange: a weight that is kept for one that is not, priced as if all others were refitted."""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import NotDefinite
from .granularity import NM, Granularity, Unstructured
from .traits import most_precise

__all__ = ["Windows", "exchange"]

_SHORT = 8  # places on either side whose pairs are priced exactly, before every exchange
_NEAR = 2  # groups of a row whose patterns are all tried when no exchange helps: where one is nearest to helping
_ESCAPES = 6  # exchanges that do not help from which every row looks for better ones
_PATTERNS = 100  # of a group that are tried, at most; where there are more, those that differ by one exchange
_TOGETHER = 2**20  # numbers in the largest tensor of a batch of rows
_ROUNDS = 64  # exchanges of one row, at most
_RELEVANT = 1e-7  # of a row's energy: what falls less than this is rounding


def _between(gram: Float[Tensor, "in in"], one: Int[Tensor, "rows a"], other: Int[Tensor, "rows b"]) -> Float[Tensor, "rows a b"]:
    """Every row's part of the Gram; faster than by two indices."""
    index = one[:, :, None] * len(gram) + other[:, None, :]
    return gram.flatten().index_select(0, index.flatten()).view(index.shape)


@dataclass
class Windows:
    """A few places of every row as a problem of their own: the rest of what is kept is refitted, whatever happens to them.

    With F what is kept outside the window C, Z = G_CC - G_CF G_FF^-1 G_FC is the Gram of what F does not explain of C, and
    the same elimination of G w gives what the outputs still owe to C. Pivoted on the places that stay, `pivoted` holds the
    inverse of their Gram there and the Gram of what they do not explain elsewhere; `values` the refitted weights and what
    is owed. The prices are those of SparseSwaps (Zimmer et al. 2025), after the refit that theirs leave out.
    """

    pivoted: Float[Tensor, "rows window window"]
    values: Float[Tensor, "rows window"]
    stays: Bool[Tensor, "rows window"]

    @classmethod
    def of(cls, gram: Float[Tensor, "in in"], owed: Float[Tensor, "rows in"], mask: Bool[Tensor, "rows in"],
           places: Int[Tensor, "rows window"]) -> "Windows":
        """Every row's window; `owed` is weight @ gram. Raises torch.linalg.LinAlgError when the Gram is not positive definite."""
        outside = mask.scatter(1, places, False)
        count = int(outside.sum(1).max())
        fixed = outside.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        real = outside.gather(1, fixed).to(gram)
        inner, cross = _between(gram, fixed, fixed), _between(gram, fixed, places)
        if not bool(real.all()):  # rows with fewer get independent inputs in addition
            inner.mul_(real[:, :, None]).mul_(real[:, None, :]).diagonal(dim1=1, dim2=2).add_(1 - real)
            cross.mul_(real[:, :, None])
        side = torch.cat([cross, (owed.gather(1, fixed) * real)[:, :, None]], 2)
        solved = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), side, upper=False)
        left, own = solved[:, :, :-1], solved[:, :, -1:]
        windows = cls(torch.baddbmm(_between(gram, places, places), left.mT, left, alpha=-1),
                      owed.gather(1, places) - (left.mT @ own).squeeze(2), mask.gather(1, places))
        windows._pivot()
        return windows

    def _pivot(self) -> None:
        """On all places that stay, at once."""
        kept, gram = self.stays.to(self.pivoted), self.pivoted
        inner = gram * kept[:, :, None] * kept[:, None, :]
        inner.diagonal(dim1=1, dim2=2).add_(1 - kept)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(inner)) * kept[:, :, None] * kept[:, None, :]
        weights = (inverse @ self.values[:, :, None]).squeeze(2)
        self.values = torch.where(self.stays, weights, self.values - (gram @ weights[:, :, None]).squeeze(2))
        share = inverse @ gram * (1 - kept)[:, None, :]  # of the places that do not stay, in those that do
        owing = (gram - gram @ share) * (1 - kept)[:, :, None] * (1 - kept)[:, None, :]
        self.pivoted = inverse + share - share.mT + owing

    def at(self, rows: Int[Tensor, "some"]) -> "Windows":
        """Those of some rows, as they are now."""
        return Windows(self.pivoted[rows], self.values[rows], self.stays[rows])

    def put(self, rows: Int[Tensor, "some"], others: "Windows") -> None:
        """In place of some rows."""
        self.pivoted[rows], self.values[rows], self.stays[rows] = others.pivoted, others.values, others.stays

    def costs(self) -> Float[Tensor, "rows window"]:
        """What the error grows by when a place goes that stays, and what it falls by when one stays that does not."""
        return self.values.square() / self._diagonal()

    def _diagonal(self) -> Float[Tensor, "rows window"]:
        """A place that the others explain to rounding brings nothing, and is missed by nobody."""
        diagonal = self.pivoted.diagonal(dim1=1, dim2=2)
        return diagonal.clamp_min(100 * torch.finfo(diagonal.dtype).eps)

    def move(self, rows: Int[Tensor, "moved"], places: Int[Tensor, "moved"]) -> None:
        """In each of these rows, one place goes that stays, or stays that does not."""
        pivoted, values, every = self.pivoted[rows], self.values[rows], torch.arange(len(rows), device=rows.device)
        column, row = pivoted[every, :, places], pivoted[every, places]
        pivot, value = row[every, places], values[every, places]
        ratio = column / pivot[:, None]
        pivoted.baddbmm_(ratio[:, :, None], row[:, None, :], alpha=-1)
        pivoted[every, places] = row / pivot[:, None]
        pivoted[every, :, places] = -ratio
        pivoted[every, places, places] = 1 / pivot
        values = values - ratio * value[:, None]
        values[every, places] = value / pivot
        self.pivoted[rows], self.values[rows] = pivoted, values
        self.stays[rows, places] = ~self.stays[rows, places]

    def exchanges(self, width: int = 0) -> tuple[Float[Tensor, "rows n"], Int[Tensor, "rows n"], Int[Tensor, "rows n"]]:
        """Of every row, some exchanges: what each changes the error by, what goes, and what returns.

        All those within groups of `width` neighbours; or, without a width, those between the few places on either side that
        cost least and bring most by themselves.
        """
        costs, short = self.costs(), min(_SHORT, self.stays.shape[1])
        if width:
            go = back = torch.arange(costs.shape[1], device=costs.device).view(-1, width).expand(len(costs), -1, -1)
        else:
            go = costs.masked_fill(~self.stays, torch.inf).topk(short, largest=False).indices[:, None]
            back = costs.masked_fill(self.stays, -torch.inf).topk(short).indices[:, None]
        rows = torch.arange(len(costs), device=costs.device)[:, None, None, None]
        change = self._changes(go, back, self.pivoted[rows, go[..., None], back[:, :, None]])
        one, other = go[..., None].expand(change.shape), back[:, :, None].expand(change.shape)
        return change.flatten(1), one.flatten(1), other.flatten(1)

    def _changes(self, go: Int[Tensor, "rows *n"], back: Int[Tensor, "rows *n"],
                 share: Float[Tensor, "rows *n n"]) -> Float[Tensor, "rows *n n"]:
        """What the error changes by when one goes and another returns, with all others refitted; infinite for what is no exchange.

        If b returns, the weight of g becomes v - a c / s, and its place in the inverse i + a^2 / s, with c what is owed to b, s what
        the others do not explain of b, and a the share of g in b.
        """
        def of(values: Tensor, places: Tensor) -> Tensor:
            return values.gather(1, places.flatten(1)).view(places.shape)

        diagonal = self._diagonal()
        schur, owed = of(diagonal, back).unsqueeze(-2), of(self.values, back).unsqueeze(-2)
        value = of(self.values, go).unsqueeze(-1) - share * owed / schur
        change = value.square() / (of(diagonal, go).unsqueeze(-1) + share.square() / schur) - owed.square() / schur
        return change.masked_fill(~of(self.stays, go).unsqueeze(-1) | of(self.stays, back).unsqueeze(-2), torch.inf)

    def best_patterns(self, patterns: Bool[Tensor, "patterns width"],
                      groups: Int[Tensor, "rows some"]) -> tuple[Float[Tensor, "rows"], Int[Tensor, "rows"], Tensor]:
        """Of every row: what the best new pattern of one of these groups changes the error by, the group, and the pattern.

        Places T that change sides, whichever way, change the error by c_T^T Q_T^-1 c_T, with c their values, and Q the pivoted
        matrix with the columns of those that do not stay negated, which makes it symmetric.
        """
        width = patterns.shape[1]
        places = groups[:, :, None] * width + torch.arange(width, device=groups.device)
        rows = torch.arange(len(groups), device=groups.device)[:, None, None]
        stays = self.stays[rows, places]
        turned = (stays[:, :, None] ^ patterns).to(self.pivoted)
        blocks = self.pivoted[rows[..., None], places[..., None], places[:, :, None]] * torch.where(stays, 1.0, -1.0)[:, :, None]
        values = self.values[rows, places][:, :, None] * turned
        system = blocks[:, :, None] * turned[..., None] * turned[..., None, :] + torch.diag_embed(1 - turned)
        solved, failed = torch.linalg.solve_ex(system, values[..., None])
        change = (values * solved.squeeze(-1)).sum(-1).masked_fill(failed != 0, torch.inf).nan_to_num(nan=torch.inf)
        best, index = change.flatten(1).min(1)
        group = groups.gather(1, (index // len(patterns))[:, None]).squeeze(1)
        return best, group, patterns[index % len(patterns)]


def exchange(weight: Float[Tensor, "out in"], fitted: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"],
             gram: Float[Tensor, "in in"], granularity: Granularity, window: int, name: str = "weight") -> Bool[Tensor, "out in"]:
    """A support whose least error tr((W - V) G (W - V)^T) is not above that of `mask`, with as many places of the same shape.

    `fitted` is the best weight on `mask`, or close to it, and the diagonal of `gram` of one size: by both, the places are chosen
    that are looked at, at most `window` of a row. Raises CalibrationError when the Gram is not positive definite.
    """
    if isinstance(granularity, Unstructured) and min(window, weight.shape[1]) < 2:
        return mask
    owed = weight @ gram
    gain = (owed - fitted @ gram).square()
    energy = _RELEVANT * (owed * weight).sum(1)
    places = _places(torch.where(mask, -fitted.square(), gain), mask, granularity, window)
    order = mask.sum(1).argsort(stable=True)  # rows of a batch have about as much to factorise
    search = _Search(_windows(gram, owed[order], mask[order], places[order], name), energy[order], granularity)
    search.descend()
    for rank in range(_ESCAPES):
        search.escape(rank)
    if search.trades:
        search.descend()
    better = mask.clone()
    better[order] = mask[order].scatter(1, places[order], search.windows.stays)
    return better


def _places(worth: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], granularity: Granularity,
            window: int) -> Int[Tensor, "out window"]:
    """Half of them kept and missed least, half not kept and wanted most; or the groups where one may well be exchanged for the other."""
    size = worth.shape[1]
    if isinstance(granularity, NM):
        width = granularity.m
        groups = worth.unflatten(1, (-1, width))
        kept = mask.unflatten(1, (-1, width))
        hope = groups.masked_fill(kept, -torch.inf).amax(2) + groups.masked_fill(~kept, -torch.inf).amax(2)
        first = hope.topk(min(max(window // width, 1), size // width)).indices * width
        return (first[:, :, None] + torch.arange(width, device=first.device)).flatten(1)
    half = min(window, size) // 2
    order = worth.argsort(dim=1, descending=True, stable=True)  # first what is not kept, wanted most, then what is, missed least
    removed = (~mask).sum(1, keepdim=True).clamp(half, size - half)
    steps = torch.arange(half, device=order.device)
    return torch.cat([order[:, :half], order.gather(1, removed + steps)], 1)


def _windows(gram: Tensor, owed: Tensor, mask: Tensor, places: Tensor, name: str) -> Windows:
    """Of all rows, some at a time; in float32, and as precisely as the device can where the Gram is not positive definite in float32."""
    parts, start = [], 0
    while start < len(mask):
        largest = int(mask[start:].sum(1).max()) + places.shape[1]
        rows = slice(start, start + max(1, _TOGETHER // largest**2))
        for dtype in (torch.float32, most_precise(gram.device)):
            try:
                parts.append(Windows.of(gram.to(dtype), owed[rows].to(dtype), mask[rows], places[rows]))
                break
            except torch.linalg.LinAlgError:
                continue
        else:
            raise NotDefinite(name)
        start = rows.stop
    return Windows(torch.cat([part.pivoted.to(gram) for part in parts]), torch.cat([part.values.to(gram) for part in parts]),
                   torch.cat([part.stays for part in parts]))


class _Search:
    """Exchanges in all windows at once, until none helps."""

    def __init__(self, windows: Windows, least: Float[Tensor, "rows"], granularity: Granularity) -> None:
        self.windows, self.least = windows, least  # what a change has to bring
        self.width = granularity.m if isinstance(granularity, NM) else 0
        self.trades = not isinstance(granularity, NM) and granularity != Unstructured("row")
        self.patterns = _patterns(granularity, least.device)

    def descend(self, rows: Int[Tensor, "some"] | None = None) -> Float[Tensor, "rows"]:
        """Every row's best exchange, again and again; what the error of every row has changed by, where rows do not trade.

        Where no exchange helps, the best pattern of a group may; and one row may have what another does not need.
        Only `rows` are looked at, without trade, where they are given.
        """
        trades = self.trades and rows is None
        total = torch.zeros_like(self.least)
        rows = torch.arange(len(total), device=total.device) if rows is None else rows
        for _ in range(_ROUNDS):
            change, go, back = self.windows.at(rows).exchanges(self.width)
            moved, stuck = self._exchange(rows, change, go, back, total)
            if self.patterns is not None:
                moved = torch.cat([moved, self._turn(rows[stuck], change[stuck], total)])
            if trades:
                moved = torch.cat([moved, _trade(self.windows, moved, float(self.least.mean()))])
            rows = moved
            if not len(rows):
                break
        return total

    def _exchange(self, rows: Tensor, change: Tensor, go: Tensor, back: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """The best one of every row, where it helps; which rows those are, and which of the rows are left."""
        best, index = change.min(1, keepdim=True)
        better = best.squeeze(1) < -self.least[rows]
        self.windows.move(rows[better], back.gather(1, index).squeeze(1)[better])
        self.windows.move(rows[better], go.gather(1, index).squeeze(1)[better])
        total[rows[better]] += best.squeeze(1)[better]
        return rows[better], ~better

    def _turn(self, rows: Tensor, change: Tensor, total: Tensor) -> Int[Tensor, "turned"]:
        """The best of all patterns of a few groups of these rows; which rows it helped."""
        if not len(rows):
            return rows
        assert self.patterns is not None
        near = change.unflatten(1, (-1, self.width**2)).amin(2)
        groups = near.topk(min(_NEAR, near.shape[1]), largest=False).indices
        best, group, pattern = self.windows.at(rows).best_patterns(self.patterns, groups)
        better = best < -self.least[rows]
        rows, group, pattern = rows[better], group[better], pattern[better]
        for place in range(self.width):
            index = group * self.width + place
            turns = self.windows.stays[rows, index] ^ pattern[:, place]
            self.windows.move(rows[turns], index[turns])
        total[rows] += best[better]
        return rows

    def escape(self, rank: int) -> None:
        """Make in every row an exchange that does not help, the `rank`-th best; then the best one elsewhere, and so on down.

        Rows that are no better for it in the end go back to where they were.
        """
        before = self.windows.at(torch.arange(len(self.least), device=self.least.device))
        change, go, back = self.windows.exchanges(self.width)
        possible = change.isfinite().sum(1) > rank
        rows = possible.nonzero().flatten()
        if not len(rows):
            return
        index = change[rows].topk(rank + 1, largest=False).indices[:, -1:]
        total = torch.zeros_like(self.least)
        total[rows] = change[rows].gather(1, index).squeeze(1)
        left, came = go[rows].gather(1, index), back[rows].gather(1, index)
        self.windows.move(rows, came.squeeze(1))
        self.windows.move(rows, left.squeeze(1))
        change, go, back = self.windows.at(rows).exchanges(self.width)
        same = (go == came) | (back == left)  # or it would only go back
        moved, _ = self._exchange(rows, change.masked_fill(same, torch.inf), go, back, total)
        total += self.descend(moved)
        worse = (total >= -self.least).nonzero().flatten()
        self.windows.put(worse, before.at(worse))


def _patterns(granularity: Granularity, device: torch.device) -> Bool[Tensor, "patterns width"] | None:
    """All those of n:m; None where there are too many, and exchanges have to do."""
    if not isinstance(granularity, NM) or math.comb(granularity.m, granularity.n) > _PATTERNS:
        return None
    chosen = itertools.combinations(range(granularity.m), granularity.n)
    return torch.tensor([[place in kept for place in range(granularity.m)] for kept in chosen], device=device)


def _trade(windows: Windows, busy: Int[Tensor, "busy"], least: float) -> Int[Tensor, "traded"]:
    """The row that misses a place least gives it to the one that wants one most, and so on; which rows did.

    Rows are independent, so prices of moves in different rows add up exactly.
    """
    costs = windows.costs()
    costs[busy] = torch.nan
    cost, go = costs.masked_fill(~windows.stays, torch.inf).nan_to_num(nan=torch.inf).min(1)
    gain, back = costs.masked_fill(windows.stays, -torch.inf).nan_to_num(nan=-torch.inf).max(1)
    givers, takers = cost.argsort(stable=True), gain.argsort(descending=True, stable=True)
    count = int((gain[takers] - cost[givers] > least).sum())
    givers, takers = givers[:count], takers[:count]
    apart = ~torch.isin(givers, takers) & ~torch.isin(takers, givers)
    givers, takers = givers[apart], takers[apart]
    windows.move(takers, back[takers])
    windows.move(givers, go[givers])
    return torch.cat([givers, takers])
