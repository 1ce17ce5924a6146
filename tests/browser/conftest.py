"""A headless Chromium, and the pages that it opens."""

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
from prunus.studying.content import write as write_study
from prunus.studying.gathered import gathered

from ..asked import rows_of, written
from ..contenders import asked, three
from ..studies import THREE, calibration, ran, study
from .looking import BROWSER, DRIVER, FLAGS


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recipes at two sparsities with two seeds."""
    folder = tmp_path_factory.mktemp("page")
    recipes = [{"name": "{solver} at {sparsity}", "calibration": calibration(folder),
                "grid": {"solver": list(THREE), "sparsity": [0.3, 0.6]}}]
    state = ran(study(folder, recipes=recipes), folder / "out")
    return write_study(gathered(state, folder / "study.toml"), folder / "out")[0]
