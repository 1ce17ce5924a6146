"""The numbers that are written beside a result, and the pictures that are drawn from them."""

import builtins
import csv
import io
from typing import Any

import pytest

from prunus.figures import figures, place
from prunus.search.plan import Moment, SearchRecord

SHARES = {"model.layers.0.mlp.up_proj": 0.5, "model.layers.1.mlp.up_proj": 0.7}
SEARCH = SearchRecord("Local", "divergence", 9.0, 9.0, 9, 0, 0.0, 2.0, 1.0, 2.5, 1.5, True,
                      (Moment(1.0, 2.0, 2.5, 0.5), Moment(4.0, 1.0, 1.5, 2.25)), 10, 18, 100, {})


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


@pytest.mark.parametrize(("site", "expected"), [
    ("model.layers.13.mlp.up_proj", (13, "mlp.up_proj")), ("transformer.h.2.attn.c_attn", (2, "attn.c_attn")),
    ("model.decoder.layers.7.fc1", (7, "fc1")), ("head", (0, "head")),
])
def test_the_place_of_a_site_is_its_depth_and_its_kind(site: str, expected: tuple[int, str]) -> None:
    assert place(site) == expected


def test_every_share_and_every_moment_is_in_the_data() -> None:
    found = figures((SHARES,), (SEARCH,))
    assert [(row["block"], row["kind"], float(row["sparsity"])) for row in rows(found["allocation.csv"])] == [
        ("0", "mlp.up_proj", 0.5), ("1", "mlp.up_proj", 0.7)]
    assert [list(map(float, row.values())) for row in rows(found["search.csv"])] == [[0, 1.0, 0.5, 2.0, 2.5], [0, 4.0, 2.25, 1.0, 1.5]]


def test_pictures_are_drawn_where_there_is_something_to_see() -> None:
    assert {name for name in figures((SHARES,), (SEARCH,)) if name.endswith(".png")} == {"allocation-0.png", "search-0.png"}
    assert set(figures((dict.fromkeys(SHARES, 0.5),), ())) == {"allocation.csv"}
    assert figures((SHARES,), ())["allocation-0.png"].startswith(b"\x89PNG")


def test_without_the_library_the_data_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *others: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *others, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    assert set(figures((SHARES,), (SEARCH,))) == {"allocation.csv", "search.csv"}
