"""Charts as inline SVG, 360 units wide so that they can be read on a phone; colours are the page's, and no chart needs them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Point", "heat", "lines", "scatter"]

_WIDTH, _HEIGHT = 360.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 12.0, 40.0
_NAMES = 96.0  # at the right of lines
_LINE = 13.0  # between labels
_NAME = 22  # characters of a name that are shown
_LETTER = 7.0  # how wide one of them may be


@dataclass(frozen=True)
class Point:
    """A model in a plot."""

    name: str
    x: float
    y: float
    on_front: bool  # no other is at least as good in both, and better in one
    dense: bool


def scatter(ident: str, title: str, told: str, points: Sequence[Point], across: str, up: str, *, log: bool) -> str:
    """Points with their names, and a line through those of the front."""
    x, ticks_x = _axis([point.x for point in points], _LEFT, _WIDTH - _RIGHT, False)
    y, ticks_y = _axis([point.y for point in points], _HEIGHT - _BOTTOM, _TOP, log)
    front = sorted((x(point.x), y(point.y)) for point in points if point.on_front)
    parts = _frame(ticks_x, ticks_y, across, f"{up}{' (log)' if log else ''}", x, y)
    if len(front) > 1:
        parts.append(f'<polyline class="front" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in front)}"/>')
    heights = _apart([y(point.y) + 4 for point in points], _TOP + 8, _HEIGHT - _BOTTOM - 2)
    for place, (point, height) in enumerate(zip(points, heights, strict=True)):
        left = x(point.x) + 9 + _LETTER * min(len(point.name), _NAME) > _WIDTH
        beside, anchor = (x(point.x) - 9, "end") if left else (x(point.x) + 9, "start")
        label = f'<text class="name" x="{beside:.1f}" y="{height:.1f}" text-anchor="{anchor}">{_short(point.name)}</text>'
        parts.append(f'<g class="s{place % 6}"><title>{escape(point.name)}: {across} {_number(point.x)}, {up} {_number(point.y)}</title>'
                     f"{_mark(x(point.x), y(point.y), place, point.dense)}{label}</g>")
    return _svg(ident, title, told, _HEIGHT, parts)


def lines(ident: str, title: str, told: str, series: Mapping[str, Sequence[tuple[int | float, float]]], colours: Sequence[int],
          across: str, up: str, *, whole: bool = True, log: bool = False) -> str:
    """A line per name, each in a colour of the page; over whole numbers from 0 up, or over any numbers."""
    every = [pair for pairs in series.values() for pair in pairs]
    x, ticks_x = _axis([float(place) for place, _ in every], _LEFT, _WIDTH - _NAMES, False, whole=whole)
    y, ticks_y = _axis([*([0.0] if whole else []), *(value for _, value in every)], _HEIGHT - _BOTTOM, _TOP, log)
    parts = _frame(ticks_x, ticks_y, across, f"{up}{' (log)' if log else ''}", x, y, right=_NAMES)
    ends = _apart([y(pairs[-1][1]) + 4 for pairs in series.values()], _TOP + 8, _HEIGHT - _BOTTOM)
    for place, (name, pairs), end in zip(colours, series.items(), ends, strict=True):
        path = " ".join(f"{x(float(where)):.1f},{y(value):.1f}" for where, value in pairs)
        marks = "".join(f"<g><title>{escape(name)}, {across} {_number(float(where))}: {_number(value)}</title>"
                        f"{_mark(x(float(where)), y(value), place, False, 2.5)}</g>" for where, value in pairs)
        parts.append(f'<g class="s{place % 6}"><polyline class="line d{place % 3}" points="{path}"/>{marks}'
                     f'<text class="name" x="{_WIDTH - _NAMES + 6:g}" y="{end:.1f}">{_short(name, 13)}</text></g>')
    return _svg(ident, title, told, _HEIGHT, parts)


def heat(ident: str, title: str, told: str, kinds: Sequence[str], depths: Sequence[int], shares: Mapping[tuple[str, int], float]) -> str:
    """Shares in [0, 1] by kind and depth, from the page's colour to full."""
    left, tall = 74.0, 20.0
    wide = (_WIDTH - left - 8) / max(len(depths), 1)
    bottom = 6.0 + tall * len(kinds)
    parts = []
    for row, kind in enumerate(kinds):
        middle = 6 + tall * row + tall / 2 + 4
        parts.append(f'<text class="tick" x="{left - 6:g}" y="{middle:.1f}" text-anchor="end">{_short(kind, 12)}</text>')
        for column, depth in enumerate(depths):
            share = shares.get((kind, depth))
            told_here = "not there" if share is None else f"{share:.3f}"
            fill = "" if share is None else f' fill-opacity="{min(max(share, 0.0), 1.0):.3f}"'
            parts.append(f'<rect class="{"none" if share is None else "cell"}" x="{left + wide * column:.2f}" y="{6 + tall * row:g}" '
                         f'width="{wide:.2f}" height="{tall:g}"{fill}><title>block {depth}, {escape(kind)}: {told_here}</title></rect>')
    step = max(1, math.ceil(len(depths) * 16 / (_WIDTH - left)))
    parts += [f'<text class="tick" x="{left + wide * (column + 0.5):.1f}" y="{bottom + 13:g}" text-anchor="middle">{depth}</text>'
              for column, depth in enumerate(depths) if column % step == 0]
    parts.append(f'<text class="label" x="{left + (_WIDTH - left) / 2:g}" y="{bottom + 28:g}" text-anchor="middle">block</text>')
    for place in range(5):  # the legend
        begin = left + 44 * place
        parts.append(f'<rect class="cell" x="{begin:g}" y="{bottom + 38:g}" width="14" height="12" fill-opacity="{place / 4}"/>'
                     f'<text class="tick" x="{begin + 17:g}" y="{bottom + 48:g}">{place / 4:g}</text>')
    return _svg(ident, title, told, bottom + 56, parts)


def _svg(ident: str, title: str, told: str, height: float, parts: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-labelledby="{ident}-title {ident}-desc">'
            f'<title id="{ident}-title">{escape(title)}</title><desc id="{ident}-desc">{escape(told)}</desc>{"".join(parts)}</svg>')


def _frame(ticks_x: Sequence[float], ticks_y: Sequence[float], across: str, up: str, x: Callable[[float], float],
           y: Callable[[float], float], right: float = _RIGHT) -> list[str]:
    """Axes with their ticks and names."""
    bottom, end = _HEIGHT - _BOTTOM, _WIDTH - right
    parts = [f'<path class="axis" d="M{_LEFT:g} {_TOP:g}V{bottom:g}H{end:g}"/>']
    for tick in ticks_x:
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 14:g}" text-anchor="middle">{_number(tick)}</text>')
    for tick in ticks_y:
        parts.append(f'<path class="grid" d="M{_LEFT:g} {y(tick):.1f}H{end:g}"/>'
                     f'<text class="tick" x="{_LEFT - 5:g}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text class="label" x="{(_LEFT + end) / 2:g}" y="{_HEIGHT - 8:g}" text-anchor="middle">{escape(across)}</text>')
    turned = f'transform="translate(11 {middle:g}) rotate(-90)"'
    parts.append(f'<text class="label" {turned} text-anchor="middle">{_short(up, 44)}</text>')
    return parts


def _axis(values: Sequence[float], begin: float, end: float, log: bool,
          whole: bool = False) -> tuple[Callable[[float], float], list[float]]:
    """Where a value is drawn, and the ticks."""
    size: Callable[[float], float] = math.log10 if log else float
    low, high = min(values), max(values)
    room = (size(high) - size(low)) * 0.08 or (0.1 if log else abs(high) * 0.1 or 1.0)
    first, last = size(low) - (0 if whole else room), size(high) + (0 if whole and high > low else room)
    first = max(first, 0.0) if low >= 0 and not log else first  # what cannot be negative is not drawn as if it could
    ticks = _logarithmic(10**first, 10**last) if log else _linear(first, last, whole)

    def place(value: float) -> float:
        return begin + (size(value) - first) / (last - first) * (end - begin)

    return place, ticks


def _linear(first: float, last: float, whole: bool) -> list[float]:
    rough = (last - first) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    step = max(1.0, math.ceil(step)) if whole else step
    count = math.floor(last / step + 1e-9)
    return [round(place * step, 12) for place in range(math.ceil(first / step - 1e-9), count + 1)]


def _logarithmic(first: float, last: float) -> list[float]:
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [tick for tick in every if first <= tick <= last]
    return inside[:: math.ceil(len(inside) / 6)] if inside else [first, last]


def _apart(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Labels that would lie on each other moved down, and all up again where the last leaves the chart."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    found = list(heights)
    least = top
    for place in order:
        found[place] = max(found[place], least)
        least = found[place] + _LINE
    most = bottom
    for place in reversed(order):
        found[place] = min(found[place], most)
        most = found[place] - _LINE
    return found


def _mark(x: float, y: float, place: int, dense: bool, size: float = 5.0) -> str:
    """A square for the dense model; others differ by shape too."""
    shape = "square" if dense else ("circle", "triangle", "diamond")[place % 3]
    match shape:
        case "square":
            return f'<rect class="dot" x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:g}" height="{2 * size:g}"/>'
        case "circle":
            return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{size:g}"/>'
        case "triangle":
            return f'<path class="dot" d="M{x:.1f} {y - size:.1f}l{size:g} {2 * size:g}h{-2 * size:g}z"/>'
    return f'<path class="dot" d="M{x:.1f} {y - size:.1f}l{size:g} {size:g}l{-size:g} {size:g}l{-size:g} {-size:g}z"/>'


def _short(name: str, most: int = _NAME) -> str:
    return escape(name if len(name) <= most else f"{name[: most - 1]}…")


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:.4g}" if value % 1 else f"{value:,.0f}"
