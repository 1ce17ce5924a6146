"""The HTML of a study in a real browser: its charts are drawn."""

from pathlib import Path
from typing import Any

import pytest

from ..studies import THREE
from .looking import charts_within, in_a_browser

pytestmark = in_a_browser


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_is_never_wider_than_the_screen_and_its_charts_are_drawn(browser: Any, studied: Path, width: int) -> None:
    charts = charts_within(browser, studied, width)
    assert charts
    for wide, high, marks, titles in charts:
        assert 250 <= wide <= width
        assert high > 60
        assert marks >= len(THREE)
        assert titles >= len(THREE)
