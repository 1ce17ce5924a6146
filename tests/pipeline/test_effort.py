"""What every effort composes prunes a model, whatever goes."""

from typing import Any

import pytest

from prunus.budget import Budget
from prunus.calibration.sample import Calibration
from prunus.effort import EFFORTS
from prunus.granularity import NM
from prunus.pipeline import prune
from prunus.recipe import Recipe, Stage

from ..tiny import tiny_model, tiny_tokenizer

STAGES: list[dict[str, Any]] = [
    {"budget": Budget(0.4)}, {"granularity": NM(2, 4)}, {"sites": ("channel",), "budget": Budget(0.7)},
    {"sites": ("sublayer",), "budget": Budget(0.7)}]


@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("effort", EFFORTS)
def test_a_model_is_pruned_with_every_effort(effort: str, stage: dict[str, Any], text_file: Any) -> None:
    recipe = Recipe((Stage.of(effort, **stage),), Calibration(str(text_file), samples=8, length=32), (), ())
    report = prune(tiny_model(num_hidden_layers=4, max_position_embeddings=512), recipe, tokenizer=tiny_tokenizer()).report
    assert report.sparsity + 1 - report.parameters[1] / report.parameters[0] > 0.05
    assert ("repairing" in report.seconds) == (recipe.stage[0].recovery is not None)


def test_an_encoder_is_pruned_on_the_text_alone_and_that_is_said(text_file: Any) -> None:
    recipe = Recipe((Stage.of("balanced", budget=Budget(0.4)),), Calibration(str(text_file), samples=8, length=32, written=8), (), ())
    report = prune(tiny_model("bert"), recipe, tokenizer=tiny_tokenizer()).report
    assert report.notes[0] == "Calibration had 8 of the 16 sequences asked for: the text gave no more, or the model writes none."
