"""How the tests of pages look at them: in a window of some size, in print, and with axe-core."""

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
