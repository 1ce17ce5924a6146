"""A front as numbers and pictures: CSV always, PNG and an interactive page where `prunus[plots]` is installed."""

import io
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .errors import MissingExtra
from .figures import drawn, table_of
from .front import Front, Point
from .search.objectives import COSTS

__all__ = ["front_figures"]

_SYMBOLS = ("circle", "x", "star", "triangle-down", "triangle-up", "square", "cross")  # plotly's names


def front_figures(found: Front) -> dict[str, bytes]:
    """File name to content."""
    names = found.plan.objectives
    rows = [(*point.values, *point.held_out, "dominated" if point.dominated else "", " ".join(map(str, point.candidate)))
            for point in (*found.points, found.dense)]
    files = {"front.csv": table_of([*names, *(f"{name}, held out" for name in names), "on held-out data", "sub-network"], rows)}
    with suppress(MissingExtra):  # the numbers are there
        files |= {"front.png": _picture(found), "front.html": _page(found)}
    return files


def _axes(found: Front) -> tuple[int, int]:
    """Which objectives are drawn: what a sub-network costs from left to right, what it loses upwards."""
    names = found.plan.objectives
    cost = next((index for index, name in enumerate(names) if name in COSTS), 1)
    return cost, next(index for index in range(len(names)) if index != cost)


def _groups(found: Front) -> Mapping[str, list[Point]]:
    """The points by what held-out data says of them; and the dense model."""
    return {"front": [point for point in found.points if not point.dominated],
            "dominated on held-out data": [point for point in found.points if point.dominated], "dense": [found.dense],
            **{name: list(points) for name, points in found.baselines.items()}}


def _picture(found: Front) -> bytes:
    across, up = _axes(found)
    names = found.plan.objectives

    def draw(axes: Any) -> None:
        for (label, points), marker in zip(_groups(found).items(), "ox*v^s+", strict=False):
            axes.plot([point.values[across] for point in points], [point.values[up] for point in points], marker, label=label)
        axes.plot([point.held_out[across] for point in found.points], [point.held_out[up] for point in found.points], ".",
                  color="grey", label="the same points, held out")
        axes.set_xlabel(_label(names[across]))
        axes.set_ylabel(_label(names[up]))

    return drawn(draw)


def _label(name: str) -> str:
    """An objective with its unit."""
    return {"divergence": "divergence, nats", "loss": "loss, nats", "error": "error (1 - metric)"}.get(
        name, f"{name}, share of the dense model's")


def _page(found: Front) -> bytes:
    """One file that needs no network when it is opened."""
    try:
        from plotly import graph_objects
    except ImportError:
        raise MissingExtra("an interactive page of the front", "plots") from None
    across, up = _axes(found)
    names = found.plan.objectives
    figure = graph_objects.Figure(layout={"xaxis_title": _label(names[across]), "yaxis_title": _label(names[up]),
                                          "title": f"{found.source}: {found.looked} sub-networks, {len(found.points)} on the front",
                                          "template": "plotly_white"})
    for (label, points), symbol in zip(_groups(found).items(), _SYMBOLS, strict=False):
        told = ["<br>".join([*(f"{name} {value:.4g}, held out {other:.4g}" for name, value, other in
                               zip(names, point.values, point.held_out, strict=True)), _short(point)]) for point in points]
        figure.add_trace(graph_objects.Scatter(
            x=[point.values[across] for point in points], y=[point.values[up] for point in points], mode="markers", name=label,
            text=told, hoverinfo="text", marker={"symbol": symbol, "size": 10}))
    page = io.StringIO()
    figure.write_html(page, include_plotlyjs=True, full_html=True)
    return page.getvalue().encode()


def _short(point: Point) -> str:
    """The variables of a sub-network, as far as they fit."""
    text = " ".join(map(str, point.candidate))
    return text if len(text) <= 80 else f"{text[:80]} …"
