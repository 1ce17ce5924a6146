"""The HTML of a study in a real browser: charts are drawn, it fits phones and paper, and axe-core finds nothing."""

from pathlib import Path
from typing import Any

import pytest

from prunus.studying.content import write
from prunus.studying.gathered import gathered

from ..studies import THREE, calibration, ran, study
from .looking import charts_within, check_alone, check_print, check_readable, in_a_browser, with_axe

pytestmark = in_a_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recipes at two sparsities with two seeds."""
    folder = tmp_path_factory.mktemp("page")
    recipes = [{"name": "{solver} at {sparsity}", "calibration": calibration(folder),
                "grid": {"solver": list(THREE), "sparsity": [0.3, 0.6]}}]
    state = ran(study(folder, recipes=recipes), folder / "out")
    return write(gathered(state, folder / "study.toml"), folder / "out")[0]


@with_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_stands_in_the_way_of_a_screen_reader(browser: Any, page: Path, width: int, scheme: str) -> None:
    check_readable(browser, page, width, scheme)


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_is_never_wider_than_the_screen_and_its_charts_are_drawn(browser: Any, page: Path, width: int) -> None:
    charts = charts_within(browser, page, width)
    assert charts
    for wide, high, marks, titles in charts:
        assert 250 <= wide <= width
        assert high > 60
        assert marks >= len(THREE)
        assert titles >= len(THREE)


def test_print_has_what_was_folded(browser: Any, page: Path) -> None:
    check_print(browser, page, "protocols")


def test_the_file_asks_for_nothing_and_is_small(browser: Any, page: Path) -> None:
    check_alone(browser, page)
