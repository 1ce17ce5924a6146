"""What branches do, in numbers that can be checked."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.analysis import analyse, files_of, rank_correlation
from prunus.anatomy import describe
from prunus.calibration.sample import Calibration
from prunus.errors import RecipeError
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
    assert {"streams.png", "impacts.png", "curves.png"} <= set(files)
    assert all(name in files["README.md"].decode() for name in ("curves.png", rows[0]["site"]))


def test_rank_correlation_is_spearman_s() -> None:
    assert rank_correlation([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 400.0]) == pytest.approx(1)
    assert rank_correlation([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert rank_correlation([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.9486833)  # by hand: ranks 0, 1.5, 1.5, 3
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_an_encoder_is_refused(text_file: Path) -> None:
    with pytest.raises(RecipeError, match="divergences of the next token"):
        found(tiny_model("bert"), text_file)
