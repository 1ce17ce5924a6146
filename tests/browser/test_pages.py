"""What holds of every page: axe-core finds nothing, it prints what was folded, and it stands alone."""

import base64
from pathlib import Path
from typing import Any

import pytest

from .looking import AXE, in_a_browser, shown, with_axe

pytestmark = in_a_browser


@pytest.fixture(params=["compared", "studied"])
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@with_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_stands_in_the_way_of_a_screen_reader(browser: Any, page: Path, width: int, scheme: str) -> None:
    shown(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; });")
    browser.execute_script(Path(AXE).read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run(document).then(arguments[0]);")
    bad = [(item["id"], item["impact"], item["nodes"][0]["html"]) for item in found["violations"]]
    assert bad == []
    assert {"color-contrast", "region", "heading-order", "svg-img-alt"} <= {item["id"] for item in found["passes"]}


def test_print_has_what_was_folded_and_no_links_of_the_page(browser: Any, page: Path) -> None:
    shown(browser, page)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert not browser.find_element("css selector", "nav").is_displayed()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF")
    assert browser.execute_script(
        "return document.getElementById('protocols').querySelector('p').getBoundingClientRect().height") > 0


def test_the_file_asks_for_nothing_and_is_small(browser: Any, page: Path) -> None:
    shown(browser, page)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    assert page.stat().st_size < 5_000_000
    assert "http" not in page.read_text(encoding="utf-8").replace("http-equiv", "")
