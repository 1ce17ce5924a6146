"""How the tests of pages look at them: in a window of some size, in print, and with axe-core."""

import base64
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
AXE = os.environ.get("PRUNUS_AXE", "")  # axe.min.js of the npm package axe-core; .ci/run installs it
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")

in_a_browser = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium or chromedriver is not installed (.ci/run installs them)"),
    pytest.mark.skipif(not importlib.util.find_spec("selenium"), reason="selenium is not installed (make installs it)"),
]
with_axe = pytest.mark.skipif(not Path(AXE).is_file(), reason="PRUNUS_AXE does not name axe.min.js (.ci/run installs axe-core)")


def shown(browser: Any, page: Path, width: int = 1280, scheme: str = "light") -> Any:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500})
    browser.get(page.as_uri())
    return browser


def check_readable(browser: Any, page: Path, width: int, scheme: str) -> None:
    """axe-core finds nothing, and has looked."""
    shown(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; });")
    browser.execute_script(Path(AXE).read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run(document).then(arguments[0]);")
    bad = [(item["id"], item["impact"], item["nodes"][0]["html"]) for item in found["violations"]]
    assert not bad, bad
    assert {"color-contrast", "region", "heading-order", "svg-img-alt"} <= {item["id"] for item in found["passes"]}


def charts_within(browser: Any, page: Path, width: int) -> list[Any]:
    """Width, height, marks and titles of every chart, none of which leaves the screen, nor a text its chart."""
    shown(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = browser.execute_script("""return [...document.querySelectorAll("figure > svg text")].filter((text) => {
        const box = text.getBoundingClientRect(), frame = text.ownerSVGElement.getBoundingClientRect();
        return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
    }).map((text) => text.textContent);""")
    assert not outside, outside
    charts: list[Any] = browser.execute_script("""return [...document.querySelectorAll("figure > svg")].map((svg) => {
        const box = svg.getBoundingClientRect();
        return [box.width, box.height, svg.querySelectorAll(".dot, .cell").length, svg.querySelectorAll("g > title, rect > title").length];
    });""")
    return charts


def check_print(browser: Any, page: Path, folded: str) -> None:
    """White, without links of the page, and with what was folded in the section of that name."""
    shown(browser, page)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert not browser.find_element("css selector", "nav").is_displayed()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF")
    assert browser.execute_script(
        "return document.getElementById(arguments[0]).querySelector('p, table').getBoundingClientRect().height", folded) > 0


def check_alone(browser: Any, page: Path) -> None:
    """It asks for nothing, has no error, and is small."""
    shown(browser, page)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors, errors
    assert page.stat().st_size < 5_000_000
    assert "http" not in page.read_text(encoding="utf-8").replace("http-equiv", "")
