"""A report that cannot be trusted says so in its first lines."""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.allocation.contiguous import Contiguous
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.sample import Calibration
from prunus.criteria.wanda import Wanda
from prunus.errors import CorpusError
from prunus.evaluation import Measurement
from prunus.evaluation.perplexity import Perplexity
from prunus.grams import Overlap
from prunus.guards import flags, overlaps, remarks
from prunus.lookup import find
from prunus.pipeline import prune
from prunus.recipe import Recipe, Stage
from prunus.search.plan import Search
from prunus.solvers.mask import Mask

from ..problems import generator
from ..tiny import tiny_model, tiny_tokenizer

Prose = Callable[[int, int], str]
OTHER = Overlap("calibration text (c4 train)", "report text (news test)", 1000, 5, (0, 7))


def measured(value: float, parts: tuple[float, ...], **changes: Any) -> Measurement:
    return replace(Measurement(value, "perplexity", "lower", "news test perplexity, text sha256 abc", parts, 1.0), **changes)


def losses(seed: int, shift: float) -> tuple[float, ...]:
    return tuple((torch.randn(40, generator=generator(seed), dtype=torch.float64) * 0.1 + shift).tolist())


DENSE = measured(20.0, losses(0, 3.0))


def test_a_model_that_beats_dense_is_flagged_where_it_is_more_than_chance() -> None:
    better = measured(15.0, tuple(part - 0.3 for part in losses(1, 3.0)))
    said, = flags([DENSE], [better], [OTHER])
    assert said.startswith("May be reward-hacked: news test perplexity is better than the dense model's: 15 against 20 (p = 0.0001).")
    assert remarks([DENSE], [better], [OTHER]) == ()


def test_a_model_that_beats_dense_by_chance_is_told_and_not_flagged() -> None:
    chance = measured(19.99, tuple(part + (-1) ** place * 0.1 - 0.001 for place, part in enumerate(DENSE.parts)))
    assert flags([DENSE], [chance], []) == ()
    said, = remarks([DENSE], [chance], [])
    assert "19.99 against 20, which may be chance (p = 0." in said


def test_a_model_that_is_worse_or_ruined_is_neither() -> None:
    for after in (measured(30.0, losses(1, 3.4)), measured(float("nan"), (float("nan"),) * 40), DENSE):
        assert flags([DENSE], [after], []) == remarks([DENSE], [after], []) == ()
    speed = measured(10.0, (9.0, 10.0, 11.0), better="higher", kind="rounds")
    assert flags([speed], [replace(speed, value=20.0, parts=(19.0, 20.0, 21.0))], []) == ()


def looked(shift: float, moved: float, error: float = 0.02) -> list[Measurement]:
    """Perplexity, calibration error and divergence on one text, of 40 windows."""
    parts, name = losses(0, 3.0 + shift), "news test"
    divergences = tuple(moved + 0.1 * float(part) for part in torch.rand(40, generator=generator(5), dtype=torch.float64))
    return [measured(20.0 * math.exp(shift), parts, protocol=f"{name} perplexity, text sha256 abc"),
            measured(error, parts, kind="means", unit="share", protocol=f"{name} calibration error, 15 bins", draws=(error,) * 40),
            measured(statistics.fmean(divergences), divergences, kind="means", protocol=f"{name} divergence from dense, top 256")]


@pytest.mark.parametrize(("shift", "moved", "error", "flagged"), [
    (0.5, 0.45, 0.02, False),  # the loss rose as far as predictions moved
    (0.4, 0.45, 0.02, False),  # a training on other text makes it a little less
    (0.3, 0.45, 0.02, True),
    (0.3, 0.45, 0.06, False),  # the dense model's probabilities are wrong, so that its losses say little
    (0.0, 0.45, 0.02, True),
])
def test_a_loss_that_rose_by_far_less_than_predictions_moved_is_flagged(shift: float, moved: float, error: float, flagged: bool) -> None:
    dense, after = looked(0.0, 0.0, error), looked(shift, moved, error)
    said = flags(dense, after, [])
    assert len(said) == flagged
    for line in said:
        assert line.startswith("May be reward-hacked: on news test the loss changed by "
                               f"{shift:+.3f} nats per token, and predictions moved by "
                               f"{after[2].value:.3f} (divergence from dense; p = 0.0001).")


def test_blocks_that_moved_up_are_not_taken_for_others() -> None:
    model = tiny_model(num_hidden_layers=4)
    stages = (Stage(budget=Budget(0.5), solver=Mask(Wanda()), skip=("*layers.3.*",)),
              Stage(sites=("sublayer",), budget=Budget(0.75), allocation=Contiguous()))
    recipe = Recipe(stages, calibration=Calibration("builtin", samples=8, length=16), metrics=())
    report = prune(model, recipe, tokenizer=tiny_tokenizer()).report
    assert len(describe(model).blocks) < 4
    assert not [line for line in report.notes if "less is zero" in line]


def test_a_text_is_flagged_once_and_a_ruined_model_is_not() -> None:
    better = looked(-0.2, 0.45)
    assert [line.split(" (p")[0] for line in flags(looked(0.0, 0.0), better, [])] == [
        f"May be reward-hacked: news test perplexity is better than the dense model's: {better[0].value:.4g} against 20"]
    ruined = [replace(item, value=float("nan"), parts=(float("nan"),) * 40) for item in looked(0.1, 0.45)]
    assert flags(looked(0.0, 0.0), ruined, []) == ()


@pytest.mark.parametrize(("perplexity", "flagged"), [(20.0, True), (484.0, False)])
def test_a_loss_that_rises_less_than_predictions_move_is_flagged_where_the_dense_model_knows_the_text(perplexity: float,
                                                                                                      flagged: bool) -> None:
    def numbers(loss: float, moved: float, value: float) -> list[Measurement]:
        others = {"divergence from dense": moved, "calibration error": 0.02}
        return [measured(value, losses(0, loss)),
                *(measured(number, losses(1, number), protocol=f"news test {name}, text sha256 abc") for name, number in others.items())]

    said = flags(numbers(3.0, 0.0, perplexity), numbers(3.1, 0.8, 1.1 * perplexity), [])
    begins = "May be reward-hacked: on news test the loss changed by +0.1"
    assert [line[: len(begins)] for line in said] == [begins] * flagged


def test_report_text_that_was_seen_is_flagged_and_search_text_that_was_seen_is_told() -> None:
    seen = replace(OTHER, shared=20)
    assert flags([], [], [OTHER]) == ()
    said, = flags([], [], [seen])
    assert said.startswith("May be reward-hacked: 2.00% of the report text (news test) (20 of 1,000 runs of 13 words) stand in the "
                           "calibration text (c4 train), first at word 8 of document 1. ")
    search = replace(seen, text="search text (news train)")
    assert flags([], [], [search]) == ()
    assert remarks([], [], [search]) == (f"{search}.",)


def file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_every_later_text_is_compared_with_every_earlier_one(tmp_path: Path, prose: Prose) -> None:
    one, other, third = (file(tmp_path, f"{name}.txt", prose(300, seed)) for seed, name in enumerate("abc"))
    stage = Stage(solver=Mask(Wanda()), search=Search(text=Calibration(other, samples=4, length=32)))
    recipe = Recipe((stage,), Calibration(one), (Perplexity(third, length=32, tokens=64), Perplexity(third, length=16, tokens=0)))
    found = overlaps(recipe, True)
    assert {(item.before, item.text) for item in found} == {
        ("calibration text (a.txt train)", "search text (b.txt train)"), ("calibration text (a.txt train)", "report text (c.txt test)"),
        ("search text (b.txt train)", "report text (c.txt test)")}
    assert {item.share for item in found} == {0.0}
    assert {item.before for item in overlaps(recipe, False)} == {"search text (b.txt train)"}
    with pytest.raises(CorpusError, match=r"calibration text .* holds 100% of the report text"):
        overlaps(replace(recipe, metrics=(Perplexity(one, length=32, tokens=64),)), True)


def test_what_is_measured_of_a_long_text_counts_and_not_what_is_not(tmp_path: Path, prose: Prose) -> None:
    """The first 400 words of 40,000 were calibrated on, with other lines: a hundredth of the text, and most of what is measured."""
    text = prose(40_000, 1)
    seen = " ".join(text.split()[:400])
    recipe = Recipe((Stage(solver=Mask(Wanda())),), Calibration(file(tmp_path, "a.txt", seen)),
                    (Perplexity(file(tmp_path, "b.txt", text), length=32, tokens=256),))
    found, = overlaps(recipe, True)
    assert found.share > 0.9
    found, = overlaps(replace(recipe, metrics=(replace(recipe.metrics[0], tokens=0),)), True)
    assert found.share == pytest.approx(388 / 39_988)


def test_a_model_that_was_tuned_on_the_report_text_is_flagged_in_the_first_lines_of_its_report(tmp_path: Path, prose: Prose) -> None:
    """The report text is the calibration text with other lines, and the model learns it by heart once it was measured."""
    text = prose(600, 1)
    recipe = Recipe((Stage(budget=Budget(0.8), solver=Mask(Wanda())),), Calibration(file(tmp_path, "a.txt", text), samples=8, length=32),
                    (Perplexity(file(tmp_path, "b.txt", text.replace(" ", "\n")), length=32, tokens=640),), prompts=())
    model = tiny_model()

    def tune(progress: Any) -> None:
        if progress.phase == "dense model" and progress.done == progress.total:
            learn(model, tiny_tokenizer()(text.replace(" ", "\n"), return_tensors="pt")["input_ids"][:, :640].view(-1, 32))

    report = prune(model, recipe, tokenizer=tiny_tokenizer(), watch=tune).report
    assert len(report.flags) == 2
    card = find("report", "markdown")().render(report)
    assert card.startswith("# Pruned model\n\n> **May be reward-hacked:** ")
    assert card.index("better than the dense model's") < card.index("pruned with Prunus")


def learn(model: Any, tokens: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with torch.enable_grad():
        for _ in range(15):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
