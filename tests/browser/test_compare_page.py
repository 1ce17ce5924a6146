"""The HTML of a comparison in a real browser: charts are drawn, sections fold, and links open them."""

from pathlib import Path
from typing import Any

import pytest

from .looking import charts_within, in_a_browser, shown

pytestmark = in_a_browser


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_is_never_wider_than_the_screen_and_its_charts_are_drawn(browser: Any, compared: Path, width: int) -> None:
    charts = charts_within(browser, compared, width)
    assert len(charts) == 4 + 3 + 1  # quality against size and speed, twice; a map of each model; error by depth
    for wide, high, marks, titles in charts:
        assert 250 <= wide <= width
        assert high > 60
        assert marks >= 2
        assert titles >= 2


def test_sections_fold_and_open(browser: Any, compared: Path) -> None:
    shown(browser, compared)
    summaries = browser.find_elements("css selector", "section > details > summary")
    assert len(summaries) >= 9
    for place, summary in enumerate(summaries):
        body = browser.execute_script("return arguments[0].nextElementSibling", summary)
        before = body.is_displayed()
        browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", summary)
        summary.click()
        assert body.is_displayed() is not before, place
        summary.send_keys("\n")
        assert body.is_displayed() is before, place


def test_a_link_opens_its_section(browser: Any, compared: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    shown(browser, compared)
    body = browser.find_element("css selector", "#protocols > details > div")
    assert not body.is_displayed()
    browser.find_element("link text", "Protocols").click()
    WebDriverWait(browser, 10).until(lambda _: body.is_displayed())


def test_dark_and_light_are_two(browser: Any, compared: Path) -> None:
    colours = [shown(browser, compared, scheme=scheme).execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color];") for scheme in ("light", "dark")]
    assert colours[0] != colours[1]


def test_print_leaves_the_numbers_of_charts_out(browser: Any, compared: Path) -> None:
    shown(browser, compared)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element("css selector", ".numbers").is_displayed()
