"""What branches do, in numbers that can be checked."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.agreement import Agreement, agreements, counts, first_to_go, rank_correlation
from prunus.analysis import analyse
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.branches import branch_stats
from prunus.calibration.sample import Calibration
from prunus.errors import RecipeError
from prunus.findings import files_of
from prunus.search import search
from prunus.search.fitness import Fitness
from prunus.search.space import Query, Space
from prunus.search.strategies.progressive import Progressive
from prunus.silence import silenced
from prunus.sites import SublayerSite

from ..tiny import CAUSAL, tiny_model, tiny_tokenizer

TEXT = Calibration("self", samples=4, length=24)


def found(model: Any, text_file: Path, **settings: Any) -> Any:
    return analyse(model, tiny_tokenizer(), Calibration(str(text_file), samples=4, length=32), TEXT, **settings)


@pytest.mark.parametrize("family", CAUSAL)
def test_every_branch_has_a_row_and_its_impact_is_that_of_being_without_it(family: str, text_file: Path) -> None:
    """KL(dense || without), at every fourth position, over the whole vocabulary."""
    model = tiny_model(family)
    result = found(model, text_file)
    sites = [site for site in describe(model).sites("sublayer") if isinstance(site, SublayerSite)]
    assert [record.site for record in result.branches] == [site.name for site in sites]
    assert {record.kind for record in result.branches} == {"attention", "mlp"}
    tokens = TEXT.tokens(tiny_tokenizer(), model, 1)
    with torch.no_grad():
        dense = model(input_ids=tokens).logits[:, ::4].log_softmax(-1)
        for site, record in zip(sites, result.branches, strict=True):
            with silenced(model, [site]):
                without = model(input_ids=tokens).logits[:, ::4].log_softmax(-1)
            exact = float((dense.exp() * (dense - without)).sum(-1).mean())
            assert record.impact == pytest.approx(exact, rel=0.02)
            assert record.impact_per_weight == pytest.approx(1e6 * record.impact / site.size)


def test_curves_rise_from_nothing_with_what_is_gone(text_file: Path) -> None:
    result = found(tiny_model(num_hidden_layers=6), text_file)
    for points in result.curves.values():
        assert points[0] == (0.0, 0.0)
        shares = [share for share, _ in points]
        assert shares == sorted(set(shares))
        assert all(value > 0 for _, value in points[1:])
    assert len(result.curves["both, by impact"]) > 3


def test_files_hold_what_was_found(text_file: Path) -> None:
    result = found(tiny_model(), text_file)
    files = files_of(result)
    rows = list(csv.DictReader(io.StringIO(files["branches.csv"].decode())))
    assert [float(row["impact"]) for row in rows] == [record.impact for record in result.branches]
    assert {"streams.png", "impacts.png", "curves.png", "agreement.png"} <= set(files)
    agreement = list(csv.DictReader(io.StringIO(files["agreement.csv"].decode())))
    assert [float(row["rank correlation"]) for row in agreement] == pytest.approx([row.correlation for row in result.agreements])
    assert all(name in files["README.md"].decode() for name in ("curves.png", rows[0]["site"]))


def test_the_first_sequences_and_other_texts_are_compared_with_the_whole_of_the_first(text_file: Path) -> None:
    """Every part of a text has the statistics and the divergences that it has alone."""
    model, other = tiny_model(num_hidden_layers=4), text_file.with_name("other.txt")
    other.write_text("Plums are drupes. " * 200)
    texts = [Calibration(str(text_file), samples=3, length=32), Calibration(str(other), samples=2, length=32)]
    result = analyse(model, tiny_tokenizer(), texts, [TEXT, replace(TEXT, corpus=str(other), samples=2)], share=0.4)
    turns = [record.influence for record in result.branches]
    rows = {(row.metric, row.text, row.sequences): row for row in result.agreements}
    names = [str(text_file), str(other)]
    assert set(rows) == {("influence", text, count) for text in names for count in (1, 2)} | {
        (metric, text, count) for metric in ("impact", "impact_per_weight") for text in ("self", names[1]) for count in (1, 2)}
    whole = [row for row in result.agreements if row.text == names[1] and row.sequences == 2]
    assert {(row.against, row.of) for row in whole} == {(names[0], 3), ("self", 4)}
    anatomy, tokens = describe(model), texts[0].tokens(tiny_tokenizer(), model, 0)
    for count in (1, 2):
        stats = branch_stats(model, anatomy, tokens[:count])
        alone = [1 - stats[record.site].cosine for record in result.branches]
        assert rows["influence", names[0], count].correlation == pytest.approx(rank_correlation(alone, turns))
    part = analyse(model, tiny_tokenizer(), texts[1], replace(TEXT, corpus=str(other), samples=2))
    mine, theirs = ([record.impact for record in item.branches] for item in (part, result))
    row = rows["impact", names[1], 2]
    assert row.correlation == pytest.approx(rank_correlation(mine, theirs))
    sizes = [record.weights for record in result.branches]
    gone, others = set(first_to_go(mine, sizes, 0.4)), set(first_to_go(theirs, sizes, 0.4))
    assert row.overlap == pytest.approx(len(gone & others) / len(gone | others))


def test_the_progressive_curve_ends_where_the_search_does(text_file: Path) -> None:
    model = tiny_model(num_hidden_layers=6)
    result, anatomy = found(model, text_file), describe(model)
    space = Space(anatomy.sites("sublayer"), (0.0, 1.0), Budget(0.7))
    fitness = Fitness(model, anatomy, space, None, TEXT.tokens(tiny_tokenizer(), model, 1), batch=1)
    outcome = search(space, Progressive(), fitness, space.nearest({site.name: 0.0 for site in space.sites}), math.inf)
    chosen = outcome.trials[-1].candidate
    share, value = result.curves["both, progressive"][-1]
    assert share == pytest.approx(space.removed(chosen) / sum(site.size for site in space.sites))
    assert value == pytest.approx(fitness([Query(chosen, partial=True)])[0].value)
    assert result.passes > 0
    fitness.close()


def test_texts_that_cannot_be_compared_are_refused(text_file: Path) -> None:
    model, text = tiny_model(), Calibration(str(text_file), samples=2, length=32)
    with pytest.raises(RecipeError, match=r"calibration '.*' is named twice"):
        analyse(model, tiny_tokenizer(), [text, text], TEXT)
    with pytest.raises(RecipeError, match="text: its texts have sequences of 24, 32 tokens"):
        analyse(model, tiny_tokenizer(), text, [TEXT, text])
    with pytest.raises(RecipeError, match="share = 20: expected the fraction"):
        analyse(model, tiny_tokenizer(), text, TEXT, share=20.0)


def test_parts_of_a_sample_double() -> None:
    assert [counts(number) for number in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def test_the_least_go_until_they_are_enough() -> None:
    assert first_to_go([3.0, 1.0, 2.0], [10, 10, 80], 0.1) == (1,)
    assert first_to_go([3.0, 1.0, 2.0], [10, 10, 80], 0.11) == (1, 2)
    assert first_to_go([3.0, 1.0, 2.0], [10, 10, 80], 1.0) == (1, 2, 0)


def test_agreement_by_hand() -> None:
    """Four things of one size, half of which goes: by parts 0 and 1, or 0 and 2; by the other text 3 and 2."""
    values = {"a": {1: [1.0, 2.0, 3.0, 4.0], 2: [1.0, 3.0, 2.0, 4.0]}, "b": {2: [4.0, 3.0, 2.0, 1.0]}}
    part, other = agreements("impact", values, [1, 1, 1, 1], 0.5)
    assert replace(part, correlation=round(part.correlation, 9)) == Agreement("impact", "a", 1, "a", 2, 0.8, 1 / 3)
    assert replace(other, correlation=round(other.correlation, 9)) == Agreement("impact", "b", 2, "a", 2, -0.8, 1 / 3)


def test_rank_correlation_is_spearman_s() -> None:
    assert rank_correlation([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 400.0]) == pytest.approx(1)
    assert rank_correlation([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert rank_correlation([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.9486833)  # by hand: ranks 0, 1.5, 1.5, 3
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_an_encoder_is_refused(text_file: Path) -> None:
    with pytest.raises(RecipeError, match="divergences of the next token"):
        found(tiny_model("bert"), text_file)
