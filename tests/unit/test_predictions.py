"""What a model answers does not depend on how examples are put together, and a sub-network is scored as it is worn."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.calibration.tasks import Encoded, Task, encoded
from prunus.errors import CalibrationError
from prunus.loading import load
from prunus.predictions import answers, score

from ..genomes import prefix_of
from ..tiny import FAMILIES
from .test_tasks import rows_of, written

Checkpoint = Callable[..., Path]


def ready(family: str, folder: Path, checkpoint: Checkpoint, **settings: Any) -> tuple[Any, Encoded]:
    read = Task(written(folder, rows_of(60)), length=24, **settings).read()
    model, tokenizer = load(checkpoint(family), labels=read.labels)
    return model, encoded(read, "train", model, tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_together_are_answered_as_each_alone(family: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, examples = ready(family, tmp_path, checkpoint)
    alone = answers(model, examples, batch=1)
    assert float((answers(model, examples, batch=8) - alone).abs().max()) <= 1e-5
    first = model(input_ids=torch.tensor([examples.tokens[5]])).logits.detach()
    assert float((alone[5] - first).abs().max()) <= 1e-5
    assert float(alone.std(0).min()) > 1e-3


def test_the_score_is_that_of_the_answers(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, examples = ready("bert", tmp_path, checkpoint)
    model.train()
    found = score(model, examples)
    assert model.training
    said = answers(model, examples).argmax(1)
    assert found.value == float((said == examples.targets).double().mean())
    assert found.said == tuple(map(float, said))
    assert found.protocol == f"{examples.protocol}, accuracy"
    assert found.interval[0] <= found.value <= found.interval[1]
    assert score(model, examples).said == found.said


def test_numbers_are_scored_as_numbers(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, examples = ready("bert", tmp_path, checkpoint, kind="regression")
    found = score(model, examples)
    assert found.metric == "spearman"
    assert found.said == pytest.approx(answers(model, examples)[:, 0].tolist())


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "gpt2"])
def test_a_sub_network_is_scored_as_it_is_worn_and_the_model_is_itself_again(family: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, examples = ready(family, tmp_path, checkpoint)
    genome, dense = prefix_of(model), answers(model, examples)
    candidate = genome.draw(random.Random(1))
    with genome.worn(model, candidate):
        assert not torch.equal(answers(model, examples), dense)
    with genome.worn(model, genome.largest):
        assert torch.equal(answers(model, examples), dense)
    assert torch.equal(answers(model, examples), dense)


def test_answers_that_are_no_numbers_are_an_error(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model, examples = ready("bert", tmp_path, checkpoint)
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(CalibrationError, match=r"mine\.jsonl train: an answer of the model is not finite"):
        answers(model, examples)
