"""The HTML of a comparison in a real browser: charts are drawn, sections fold, it fits phones and paper, and axe-core finds nothing."""

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
from .looking import charts_within, check_alone, check_print, check_readable, in_a_browser, shown, with_axe

pytestmark = in_a_browser


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


@with_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_stands_in_the_way_of_a_screen_reader(browser: Any, page: Path, width: int, scheme: str) -> None:
    check_readable(browser, page, width, scheme)


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_is_never_wider_than_the_screen_and_its_charts_are_drawn(browser: Any, page: Path, width: int) -> None:
    charts = charts_within(browser, page, width)
    assert len(charts) == 4 + 3 + 1  # quality against size and speed, twice; a map of each model; error by depth
    for wide, high, marks, titles in charts:
        assert 250 <= wide <= width
        assert high > 60
        assert marks >= 2
        assert titles >= 2


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


def test_print_has_what_was_folded_and_no_links_of_the_page(browser: Any, page: Path) -> None:
    check_print(browser, page, "protocols")
    assert not browser.find_element("css selector", ".numbers").is_displayed()


def test_the_file_asks_for_nothing_and_is_small(browser: Any, page: Path) -> None:
    check_alone(browser, page)
