"""What a run measures before and after: predictions beside the dense model's, and tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunus.errors import CorpusError, RecipeError
from prunus.evaluation.fidelity import Fidelity
from prunus.evaluation.tasks import Tasks
from prunus.pipeline import Progress, prune
from prunus.recipe import Recipe
from prunus.solvers.mask import Mask

from ..asked import rows_of, written
from ..tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def other(tmp_path: Path, prose: Callable[[int, int], str]) -> str:
    (tmp_path / "other.txt").write_text(prose(400, 3), encoding="utf-8")
    return str(tmp_path / "other.txt")


def test_predictions_are_compared_with_those_of_the_dense_model_that_was_pruned(recipe_for: Callable[..., Recipe], other: str) -> None:
    metric = Fidelity((other,), length=32, tokens=320)
    report = prune(tiny_model(), recipe_for(metrics=(metric,), solver=Mask()), tokenizer=tiny_tokenizer()).report
    assert [item.label for item in report.before] == [item.label for item in report.after]
    dense, pruned = ({item.label.split(" test ")[1]: item.value for item in items} for items in (report.before, report.after))
    assert (dense["divergence from dense"], dense["agreement with dense"]) == (0.0, 1.0)
    assert pruned["divergence from dense"] > 0
    assert pruned["agreement with dense"] < 1


def test_text_that_calibrates_is_not_reported_on(recipe_for: Callable[..., Recipe], text_file: Path) -> None:
    with pytest.raises(CorpusError, match="holds 100% of the report text"):
        prune(tiny_model(), recipe_for(metrics=(Fidelity((str(text_file),), length=32, tokens=320),)), tokenizer=tiny_tokenizer())


@pytest.mark.filterwarnings("ignore")
def test_tasks_are_asked_before_and_after(recipe_for: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'prunus[tasks]')")
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    written(tmp_path / "piqa", validation=rows_of("piqa"))
    told: list[Progress] = []
    recipe = recipe_for(metrics=(Tasks(("piqa",), limit=10),), solver=Mask())
    report = prune(tiny_model(), recipe, tokenizer=tiny_tokenizer(), watch=told.append).report
    (before,), (after,) = report.before, report.after
    assert before.protocol == after.protocol
    assert before.examples != after.examples
    assert [progress.done for progress in told if progress.phase == "task piqa"][-1] == 20


@pytest.mark.filterwarnings("ignore")
def test_tasks_that_cannot_be_asked_are_refused_before_anything_is_pruned(recipe_for: Callable[..., Recipe]) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'prunus[tasks]')")
    model: Any = tiny_model()
    with pytest.raises(RecipeError, match="Did you mean 'piqa'"):
        prune(model, recipe_for(metrics=(Tasks(("pqia",)),), solver=Mask()), tokenizer=tiny_tokenizer())
    assert all((weight == before).all() for weight, before in zip(model.parameters(), tiny_model().parameters(), strict=True))
