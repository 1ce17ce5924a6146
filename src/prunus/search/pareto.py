"""The front of what a search with several objectives has found, how good it is, and which point of it to take. Smaller is better."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray

from ..errors import MissingExtra, RecipeError, nearest
from .space import Array

__all__ = ["Rank", "bootstrap_ranks", "front", "hypervolume", "knee", "order", "pick", "quantiles", "ranks", "regret"]

Indices = NDArray[numpy.intp]
_ROUNDING = 1e-9  # that a sum of shares may be above what it stands for


def front(values: ArrayLike) -> Indices:
    """The rows that no other row dominates: as small in every objective, and smaller in one. Ascending; equal rows are all on it,
    rows with a value that is no finite number never. Raises RecipeError when there are fewer than two objectives."""
    rows = _matrix(values)
    finite = numpy.flatnonzero(numpy.isfinite(rows).all(1))
    points, place = numpy.unique(rows[finite], axis=0, return_inverse=True)
    found: Indices = finite[_undominated(points)[place.reshape(-1)]]
    return found


def ranks(values: ArrayLike) -> Indices:
    """Of every row: 0 on the front, 1 on the front of what is left without it, and so on (non-dominated sorting; Deb et al. 2002).
    Rows with a value that is no finite number come last."""
    rows = _matrix(values)
    found = numpy.full(len(rows), -1, dtype=numpy.intp)
    left = numpy.flatnonzero(numpy.isfinite(rows).all(1))
    rank = 0
    while left.size:
        first = front(rows[left])
        found[left[first]] = rank
        left = numpy.delete(left, first)
        rank += 1
    found[found < 0] = rank
    return found


def order(values: ArrayLike) -> Indices:
    """All rows, the best first: by rank, and within a rank those first that are far from their neighbours (NSGA-II's crowding)."""
    rows, rank = _matrix(values), ranks(values)
    alone = numpy.zeros(len(rows))
    finite = numpy.isfinite(rows).all(1)
    for level in numpy.unique(rank[finite]):
        members = numpy.flatnonzero((rank == level) & finite)
        alone[members] = _crowding(rows[members])
    return numpy.lexsort((-alone, rank))


def hypervolume(values: ArrayLike, reference: Sequence[float]) -> float:
    """The volume of what the rows dominate, up to the reference point; rows beyond it in any objective add nothing.

    Two objectives by a sweep, more by pymoo. Raises RecipeError when the reference has another number of objectives.
    """
    rows, corner = _matrix(values), numpy.asarray(reference, dtype=float)
    if corner.shape != (rows.shape[1],):
        raise RecipeError(f"hypervolume: the reference has {corner.size} values, and there are {rows.shape[1]} objectives.")
    points = rows[front(rows)]
    points = numpy.unique(points[(points < corner).all(1)], axis=0)
    if not len(points):
        return 0.0
    if len(corner) > 2:
        return _many(points, corner)
    heights = numpy.concatenate(([corner[1]], points[:-1, 1])) - points[:, 1]  # in the order of the first objective the second falls
    return float((corner[0] - points[:, 0]) @ heights)


def quantiles(values_by_method: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Every objective as its quantile in [0, 1] among the finite values of all methods together; equal values share the middle of
    theirs. Scales, and how far off outliers are, then do not matter. What is not finite becomes infinity."""
    tables = {name: _matrix(values) for name, values in values_by_method.items()}
    if len({rows.shape[1] for rows in tables.values()}) > 1:
        raise RecipeError(f"quantiles: methods {', '.join(tables)} differ in their number of objectives.")
    together = numpy.concatenate(list(tables.values()))
    known = [numpy.sort(column[numpy.isfinite(column)]) for column in together.T]
    return {name: numpy.column_stack([_quantile(column, among) for column, among in zip(rows.T, known, strict=True)])
            for name, rows in tables.items()}


def regret(values: ArrayLike) -> float:
    """What the hypervolume of quantiles lacks to that of the ideal point, with the reference 2 in every objective: 4 - HV of two."""
    corner = [2.0] * _matrix(values).shape[1]
    return math.prod(corner) - hypervolume(values, corner)


@dataclass(frozen=True)
class Rank:
    """Where a method stands among others; 1 is the best."""

    mean: float
    low: float  # of the 95 % percentile interval over resamples
    high: float


def bootstrap_ranks(scores: Mapping[str, Sequence[float] | Sequence[Sequence[float]]], resamples: int = 1000,
                    seed: int = 0) -> dict[str, Rank]:
    """The ranks of methods by a score such as `regret`, smaller is better, when their repeats are drawn again with replacement.

    A method has repeats, or tasks with repeats each (of which there may be more or fewer); in every resample its repeats are averaged,
    methods ranked on each task (equals share the mean rank), and ranks averaged over tasks.
    """
    rng = numpy.random.default_rng(seed)
    means = []
    for name, found in scores.items():
        tasks = [numpy.atleast_1d(numpy.asarray(row, dtype=float)) for row in (found if numpy.ndim(found[:1]) > 1 else [found])]
        empty = not all(row.size for row in tasks)
        if empty or not all(numpy.isfinite(row).all() for row in tasks):
            raise RecipeError(f"ranks: the scores of {name} are {'none' if empty else 'not all finite'}.")
        means.append(numpy.stack([row[rng.integers(len(row), size=(resamples, len(row)))].mean(1) for row in tasks], 1))
    if len({mean.shape for mean in means}) > 1:
        raise RecipeError(f"ranks: methods {', '.join(scores)} differ in their number of tasks.")
    stacked = numpy.stack(means)  # method, resample, task
    place = numpy.stack([1 + (stacked < mine).sum(0) + ((stacked == mine).sum(0) - 1) / 2 for mine in stacked]).mean(2)
    return {name: Rank(float(mine.mean()), *(float(end) for end in numpy.quantile(mine, (0.025, 0.975))))
            for name, mine in zip(scores, place, strict=True)}


def knee(values: ArrayLike) -> int:
    """The row of the front that is farthest below the plane through its ends, each objective scaled to the range of the front.
    Raises RecipeError when no row is finite."""
    rows, members = _matrix(values), front(values)
    if not members.size:
        raise RecipeError("knee: no point has finite values.")
    points = rows[members]
    low, high = points.min(0), points.max(0)
    return int(members[((points - low) / numpy.where(high > low, high - low, 1.0)).sum(1).argmin()])


def pick(values: ArrayLike, names: Sequence[str], limits: Sequence[str] = ()) -> int:
    """The row of the front that keeps to all limits, such as "params<=0.5", and is best in the first objective that has none
    (in the first, when all have one; the next decides between equals). Without limits, the knee.

    Raises RecipeError, which names the nearest point, when no point keeps to the limits.
    """
    rows, asked = _matrix(values), [_limit(text, names) for text in limits]
    if not asked:
        return knee(values)
    members, limited = front(values), {column for column, _, _ in asked}
    if not members.size:
        raise RecipeError(f"pick {' and '.join(limits)}: no point has finite values.")
    points = rows[members]
    beyond = numpy.stack([points[:, column] - most for column, most, _ in asked], axis=1)
    keeps = numpy.stack([over < 0 if strict else over <= _ROUNDING for over, (_, _, strict) in zip(beyond.T, asked, strict=True)]).all(0)
    if not keeps.any():
        spans = numpy.array([numpy.ptp(points[:, column]) or 1.0 for column, _, _ in asked])
        closest = points[(beyond.clip(0) / spans).sum(1).argmin()]
        said = ", ".join(f"{name} = {value:.6g}" for name, value in zip(names, closest, strict=True))
        raise RecipeError(f"pick {' and '.join(limits)}: no point of the front keeps to that. The nearest has {said}.")
    columns = sorted(range(len(names)), key=lambda column: column in limited)
    best = numpy.lexsort([points[keeps][:, column] for column in reversed(columns)])[0]
    return int(members[keeps][best])


def _matrix(values: ArrayLike) -> Array:
    rows = numpy.asarray(values, dtype=float)
    rows = rows.reshape(0, 2) if rows.size == 0 and rows.ndim < 2 else rows
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise RecipeError(f"values of shape {rows.shape}: expected a row for every point, with two or more objectives.")
    return rows + 0.0  # -0 becomes 0


def _undominated(points: Array) -> NDArray[numpy.bool_]:
    """Of different rows in lexicographic order, in which none dominates an earlier one."""
    kept = numpy.ones(len(points), dtype=bool)
    if points.shape[1] == 2:
        kept[1:] = points[1:, 1] < numpy.minimum.accumulate(points[:, 1])[:-1]
        return kept
    for index in range(len(points)):
        if kept[index]:
            kept[index + 1 :] &= (points[index + 1 :] < points[index]).any(1)
    return kept


def _crowding(points: Array) -> Array:
    """The size of the box between a point's neighbours on the front, relative to the front's; infinite at its ends."""
    found = numpy.zeros(len(points))
    for column in points.T:
        along = numpy.argsort(column, kind="stable")
        ends = column[along]
        width = (ends[-1] - ends[0]) or 1.0
        found[along[1:-1]] += (ends[2:] - ends[:-2]) / width
        found[along[[0, -1]]] = numpy.inf
    return found


def _many(points: Array, corner: Array) -> float:
    try:
        from pymoo.indicators.hv import HV
    except ImportError:
        raise MissingExtra("the hypervolume of more than two objectives", "search") from None
    return float(HV(ref_point=corner)(points))


def _quantile(column: Array, among: Array) -> Array:
    """The middle of a value's places among sorted values, as a fraction."""
    places = (numpy.searchsorted(among, column) + numpy.searchsorted(among, column, "right") - 1) / 2 / max(len(among) - 1, 1)
    return numpy.where(numpy.isfinite(column), places, numpy.inf)


def _limit(text: str, names: Sequence[str]) -> tuple[int, float, bool]:
    """`params<=0.5` or `params<0.5`: the objective's column, its limit, and whether the limit itself is too much."""
    found = re.fullmatch(r"\s*([^<>=\s]+)\s*(<=?)\s*(\S+)\s*", text)
    try:
        name, sign, most = found.groups() if found else ("", "", "nan")
        limit = float(most)
    except ValueError:
        limit = math.nan
    if math.isnan(limit):
        raise RecipeError(f"pick {text!r}: expected an objective and what it may be at most, such as {names[-1]}<=0.5.")
    if name not in names:
        raise RecipeError(f"pick {text!r}: {name!r} is no objective of this search{nearest(name, list(names))} "
                          f"Known: {', '.join(names)}.")
    return list(names).index(name), limit, sign == "<"
