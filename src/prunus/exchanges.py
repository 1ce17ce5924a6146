"""Better supports by exchange: a weight that is kept for one that is not, priced as if all others were refitted."""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import CalibrationError
from .granularity import NM, Granularity, Unstructured

__all__ = ["Windows", "exchange"]

_SHORT = 8  # places on either side whose pairs are priced exactly, before every exchange
_NEAR = 2  # groups of a row whose patterns are all tried when no exchange helps: where one is nearest to helping
_PATTERNS = 100  # of a group that are tried, at most; where there are more, those that differ by one exchange
_TOGETHER = 2**22  # numbers in the largest tensor of a batch of rows
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

    def best_exchanges(self) -> tuple[Float[Tensor, "rows"], Int[Tensor, "rows"], Int[Tensor, "rows"]]:
        """Of every row: what its best exchange changes the error by, what goes, and what returns."""
        costs = self.costs()
        short = min(_SHORT, costs.shape[1])
        go = costs.masked_fill(~self.stays, torch.inf).topk(short, largest=False).indices
        back = costs.masked_fill(self.stays, -torch.inf).topk(short).indices
        rows = torch.arange(len(costs), device=costs.device)[:, None, None]
        change = self._changes(go, back, self.pivoted[rows, go[:, :, None], back[:, None, :]])
        best, index = change.flatten(1).min(1)
        return best, go.gather(1, index[:, None] // short).squeeze(1), back.gather(1, index[:, None] % short).squeeze(1)

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

    def in_groups(self, width: int) -> Float[Tensor, "rows groups pairs"]:
        """What exchanges within the groups of `width` neighbours change the error by; pair = width * what goes + what returns."""
        places = torch.arange(self.stays.shape[1], device=self.stays.device).view(-1, width).expand(len(self.stays), -1, -1)
        groups = range(0, self.stays.shape[1], width)
        blocks = torch.stack([self.pivoted[:, start : start + width, start : start + width] for start in groups], 1)
        return self._changes(places, places, blocks).flatten(2)

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
    owed = weight @ gram
    gain = (owed - fitted @ gram).square()
    energy = _RELEVANT * (owed * weight).sum(1)
    places = _places(torch.where(mask, -fitted.square(), gain), mask, granularity, window)
    order = mask.sum(1).argsort(stable=True)  # rows of a batch have about as much to factorise
    windows = _windows(gram, owed[order], mask[order], places[order], name)
    if isinstance(granularity, NM):
        _within_groups(windows, energy[order], granularity)
    else:
        _anywhere(windows, energy[order], trade=granularity != Unstructured("row"))
    better = mask.clone()
    better[order] = mask[order].scatter(1, places[order], windows.stays)
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
    """Of all rows, some at a time; in float32, and in float64 where the Gram is not positive definite in float32."""
    parts, start = [], 0
    while start < len(mask):
        largest = int(mask[start:].sum(1).max()) + places.shape[1]
        rows = slice(start, start + max(1, _TOGETHER // largest**2))
        for dtype in (torch.float32, torch.float64):
            try:
                parts.append(Windows.of(gram.to(dtype), owed[rows].to(dtype), mask[rows], places[rows]))
                break
            except torch.linalg.LinAlgError:
                continue
        else:
            raise CalibrationError(f"{name}: Gram matrix not positive definite after damping. "
                                   "Raise `damping` or calibrate with more tokens.")
        start = rows.stop
    return Windows(torch.cat([part.pivoted.to(gram) for part in parts]), torch.cat([part.values.to(gram) for part in parts]),
                   torch.cat([part.stays for part in parts]))


def _anywhere(windows: Windows, least: Float[Tensor, "rows"], trade: bool) -> None:
    """Every row's best exchange, again and again; what one row would give away for what another wants, where rows may trade."""
    rows = torch.arange(len(least), device=least.device)  # where something may have changed since the last look
    for _ in range(_ROUNDS):
        change, go, back = windows.at(rows).best_exchanges()
        better = change < -least[rows]
        rows = rows[better]
        windows.move(rows, back[better])
        windows.move(rows, go[better])
        if trade:
            rows = torch.cat([rows, _trade(windows, rows, float(least.mean()))])
        if not len(rows):
            return


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


def _within_groups(windows: Windows, least: Float[Tensor, "rows"], granularity: NM) -> None:
    """Exchanges as long as they help; then, of every row, the best of all patterns of a few groups, the others refitted."""
    chosen = list(itertools.islice(itertools.combinations(range(granularity.m), granularity.n), _PATTERNS + 1))
    patterns = torch.zeros(len(chosen), granularity.m, dtype=torch.bool, device=least.device)
    for index, places in enumerate(chosen):
        patterns[index, list(places)] = True
    width, rows = granularity.m, torch.arange(len(least), device=least.device)
    for _ in range(_ROUNDS):
        change = windows.at(rows).in_groups(width)
        best, index = change.flatten(1).min(1)
        better, start, pair = best < -least[rows], index // width**2 * width, index % width**2
        moved, stuck = rows[better], rows[~better]
        windows.move(moved, (start + pair % width)[better])
        windows.move(moved, (start + pair // width)[better])
        near = change[~better].amin(2).topk(min(_NEAR, change.shape[1]), largest=False).indices
        rows = moved if len(chosen) > _PATTERNS else torch.cat([moved, _turn(windows, stuck, least[stuck], patterns, near)])
        if not len(rows):
            return


def _turn(windows: Windows, rows: Int[Tensor, "stuck"], least: Float[Tensor, "stuck"],
          patterns: Bool[Tensor, "patterns width"], groups: Int[Tensor, "stuck some"]) -> Int[Tensor, "turned"]:
    """Each of these rows' best pattern of one of its groups; which rows it helped."""
    if not len(rows):
        return rows
    change, group, pattern = windows.at(rows).best_patterns(patterns, groups)
    better = change < -least
    rows, group, pattern = rows[better], group[better], pattern[better]
    for place in range(patterns.shape[1]):
        index = group * patterns.shape[1] + place
        turns = windows.stays[rows, index] ^ pattern[:, place]
        windows.move(rows[turns], index[turns])
    return rows
