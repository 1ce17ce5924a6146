"""The HTML of a comparison in a real browser: charts are drawn, sections fold, it fits phones and paper, and axe-core finds nothing."""

import base64
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunus.calibration.sample import Calibration
from prunus.comparing.run import compare, write
from prunus.export.huggingface import save
from prunus.loading import load
from prunus.pipeline import prune
from prunus.recipe import Recipe, Stage
from prunus.solvers.sparsegpt import SparseGPT

from ..asked import rows_of, written
from ..contenders import asked, three

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
AXE = os.environ.get("PRUNUS_AXE", "")  # axe.min.js of the npm package axe-core; .ci/run installs it
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium or chromedriver is not installed (.ci/run installs them)"),
    pytest.mark.skipif(not importlib.util.find_spec("selenium"), reason="selenium is not installed (make installs it)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: three models and the folder of a pruned one, two texts, a task, speed, and a warning."""
    folder = tmp_path_factory.mktemp("page")
    sources = three(folder)
    text = folder / "plums.txt"
    text.write_text("".join(f"plum {place} is riper than pear {place + 1} and falls before it does\n\n" for place in range(300)))
    loaded = load(sources[0])
    recipe = Recipe((Stage(solver=SparseGPT()),), Calibration(str(text), samples=4, length=32), metrics=(), prompts=())
    save(prune(loaded.model, recipe, tokenizer=loaded.tokenizer, source=sources[0]), folder / "pruned")
    written(folder / "data" / "piqa", train=rows_of("piqa", 4, seed=1), validation=rows_of("piqa", 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_DATA", str(folder / "data"))
        patch.setattr("prunus.comparing.measuring.memory_in_pytorch", lambda *_: 2**20)
        found = compare([*sources, str(folder / "pruned")],
                        asked(corpora=("builtin", str(text)), tasks=("piqa",), rounds=2, read=8, write=2), folder / "out")
        return write(found, folder / "out")[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def shown(browser: Any, page: Path, width: int = 1280, scheme: str = "light") -> Any:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500})
    browser.get(page.as_uri())
    return browser


@pytest.mark.skipif(not Path(AXE).is_file(), reason="PRUNUS_AXE does not name axe.min.js (.ci/run installs axe-core)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_stands_in_the_way_of_a_screen_reader(browser: Any, page: Path, width: int, scheme: str) -> None:
    shown(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; });")
    browser.execute_script(Path(AXE).read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run(document).then(arguments[0]);")
    assert [(item["id"], item["impact"], item["nodes"][0]["html"]) for item in found["violations"]] == []
    assert {"color-contrast", "region", "heading-order", "svg-img-alt"} <= {item["id"] for item in found["passes"]}


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_is_never_wider_than_the_screen_and_its_charts_are_drawn(browser: Any, page: Path, width: int) -> None:
    shown(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    charts = browser.execute_script("""return [...document.querySelectorAll("figure > svg")].map((svg) => {
        const box = svg.getBoundingClientRect();
        return [box.width, box.height, svg.querySelectorAll(".dot, .cell").length, svg.querySelectorAll("g > title, rect > title").length];
    });""")
    assert len(charts) == 4 + 3 + 1  # quality against size and speed, twice; a map of each model; error by depth
    for wide, high, marks, titles in charts:
        assert 250 <= wide <= width
        assert high > 60
        assert marks >= 2
        assert titles >= 2
    outside = browser.execute_script("""return [...document.querySelectorAll("figure > svg text")].filter((text) => {
        const box = text.getBoundingClientRect(), frame = text.ownerSVGElement.getBoundingClientRect();
        return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
    }).map((text) => text.textContent);""")
    assert outside == []


def test_sections_fold_and_open(browser: Any, page: Path) -> None:
    shown(browser, page)
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


def test_a_link_opens_its_section(browser: Any, page: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    shown(browser, page)
    body = browser.find_element("css selector", "#protocols > details > div")
    assert not body.is_displayed()
    browser.find_element("link text", "Protocols").click()
    WebDriverWait(browser, 10).until(lambda _: body.is_displayed())


def test_dark_and_light_are_two(browser: Any, page: Path) -> None:
    colours = [shown(browser, page, scheme=scheme).execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color];") for scheme in ("light", "dark")]
    assert colours[0] != colours[1]


def test_print_has_what_was_folded_and_no_links_of_the_page(browser: Any, page: Path, tmp_path: Path) -> None:
    shown(browser, page)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert not browser.find_element("css selector", "nav").is_displayed()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF")
    assert browser.execute_script("return document.getElementById('protocols').querySelector('p').getBoundingClientRect().height") > 0
    assert not browser.find_element("css selector", ".numbers").is_displayed()


def test_the_file_asks_for_nothing_and_is_small(browser: Any, page: Path) -> None:
    shown(browser, page)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert page.stat().st_size < 5_000_000
    assert "http" not in page.read_text(encoding="utf-8").replace("http-equiv", "")
