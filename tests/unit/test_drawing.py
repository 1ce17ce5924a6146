"""Charts: well-formed, readable, and with every number in them."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from prunus.comparing.drawing import Point, _apart, _linear, _logarithmic, heat, lines, scatter


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def texts(svg: ElementTree.Element, tag: str = "text") -> list[str]:
    return ["".join(node.itertext()) for node in svg.iter(tag)]


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(f"model <{place}>", x, y, place < 2, place == 0) for place, (x, y) in enumerate(pairs)]


def test_a_scatter_names_every_point_and_tells_its_numbers() -> None:
    svg = parsed(scatter("one", "Quality & size", "what it shows", points((134.5, 29.19), (108.0, 52.4), (108.0, 52.4)), "parameters",
                         "perplexity", log=False))
    assert svg.attrib["role"] == "img"
    assert svg.attrib["aria-labelledby"] == "one-title one-desc"
    assert texts(svg, "title")[0] == "Quality & size"
    assert "model <1>: parameters 108, perplexity 52.4" in texts(svg, "title")
    assert [name for name in texts(svg) if name.startswith("model")] == ["model <0>", "model <1>", "model <2>"]
    heights = sorted(float(node.attrib["y"]) for node in svg.iter("text") if node.attrib.get("class") == "name")
    assert min(later - earlier for earlier, later in pairwise(heights)) >= 13 - 0.1
    assert len(list(svg.iter("polyline"))) == 1


@pytest.mark.parametrize("pairs", [[(1.0, 1.0), (1.0, 1.0)], [(0.0, 0.0), (1e9, 1e-9)], [(5.0, 3.0), (5.0, 400.0)]])
def test_any_numbers_can_be_drawn(pairs: list[tuple[float, float]]) -> None:
    for log in (False, True) if min(y for _, y in pairs) > 0 else (False,):
        svg = parsed(scatter("one", "t", "d", points(*pairs), "x", "y", log=log))
        for node in svg.iter("text"):
            if "x" in node.attrib:
                assert 0 <= float(node.attrib["x"]) <= 360


def test_ticks_are_round_and_inside() -> None:
    assert _linear(0.0, 1.0, False) == [0.0, 0.5, 1.0]
    assert _linear(101.0, 138.0, False) == [110.0, 120.0, 130.0]
    assert _linear(0.0, 2.0, True) == [0.0, 1.0, 2.0]
    assert _logarithmic(25.0, 3000.0) == [50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0]
    assert _logarithmic(2.1, 2.2) == [2.1, 2.2]


def test_labels_are_moved_apart_within_the_chart() -> None:
    assert _apart([100.0, 100.0, 105.0], 0.0, 300.0) == [100.0, 113.0, 126.0]
    assert _apart([298.0, 299.0], 0.0, 300.0) == [287.0, 300.0]


def test_a_map_has_a_cell_for_every_block_and_matrix() -> None:
    shares = {("q_proj", depth): depth / 2 for depth in range(3)}
    svg = parsed(heat("map", "t", "d", ["q_proj", "mlp"], range(3), shares))
    cells = [node for node in svg.iter("rect") if node.find("title") is not None]
    assert len(cells) == 6
    assert [node.attrib.get("fill-opacity") for node in cells] == ["0.000", "0.500", "1.000", None, None, None]
    assert "block 1, q_proj: 0.500" in texts(svg, "title")
    assert "block 2, mlp: not there" in texts(svg, "title")


def test_lines_have_their_names_at_their_ends() -> None:
    svg = parsed(lines("e", "t", "d", {"a": [(0, 0.1), (1, 0.2)], "b & c": [(0, 0.1), (1, 0.2)]}, [1, 2], "block", "error"))
    assert len(list(svg.iter("polyline"))) == 2
    assert [name for name in texts(svg) if name in ("a", "b & c")] == ["a", "b & c"]
    assert "b & c, block 1: 0.2" in texts(svg, "title")


def test_lines_may_be_over_shares_and_up_by_powers() -> None:
    """At 10, 100 and 1000 of a logarithmic axis, points are as far apart from each other; 0.6 is halfway from 0.5 to 0.7."""
    pairs = [(0.5, 10.0), (0.6, 100.0), (0.7, 1000.0)]
    svg = parsed(lines("e", "t", "d", {"a": pairs}, [0], "sparsity", "loss", whole=False, log=True))
    line, = svg.iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = ([float(value) for value in point.split(",")] for point in line.attrib["points"].split())
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2), abs=0.11)
    assert x0 < x1
    assert y0 > y1
    assert "loss (log)" in texts(svg)
    assert "a, sparsity 0.6: 100" in texts(svg, "title")
