"""The best of several models is named only where it can be told from the others."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from prunus.comparison import bare, check_pair, difference_of, p_value, ranked, stored_of
from prunus.errors import ComparisonError
from prunus.evaluation import Measurement
from prunus.significance import mcnemar, sign_flips

from ..problems import generator

PROTOCOL = "news test perplexity, text sha256 abc, 40 windows of 512, float32, tokenizer of 258 words 07fc71e9"


@dataclass(frozen=True)
class Found:
    parts: tuple[float, ...]
    better: str = "lower"
    protocol: str = PROTOCOL


def losses(count: int, seed: int, *means: float) -> list[Found]:
    """Of models that have much in common: windows are hard or easy for all of them."""
    shared = torch.randn(count, generator=generator(seed), dtype=torch.float64)
    own = torch.randn((len(means), count), generator=generator(seed + 1000), dtype=torch.float64)
    return [Found(tuple((3 + shared + mean + 0.1 * row).tolist())) for mean, row in zip(means, own, strict=True)]


def test_the_best_is_better_than_those_that_are_worse_and_tied_with_those_that_may_not_be() -> None:
    dense, other, worse, ruined = losses(40, 0, 0.0, 0.005, 0.3, 4.0)
    found = ranked({"worse": worse, "dense": dense, "ruined": ruined, "other": other})
    assert [standing.name for standing in found.standings][2:] == ["worse", "ruined"]
    assert set(found.tied) == {"dense", "other"}
    assert found.comparisons == 6
    assert found.verdict.startswith(f"{found.best} is better than worse, ruined (p < 0.05 after Holm's correction for 6 comparisons); ")
    third = found.standings[2]
    assert third.difference == pytest.approx(third.mean - found.standings[0].mean)
    assert third.interval[0] < third.difference < third.interval[1]
    assert third.p <= third.adjusted < 0.05


def test_higher_is_better_where_it_is() -> None:
    right, wrong = Found((1.0,) * 40 + (0.0,) * 10, "higher"), Found((0.0,) * 20 + (1.0,) * 20 + (0.0,) * 10, "higher")
    found = ranked({"wrong": wrong, "right": right})
    assert found.verdict == "right is better than wrong (p < 0.05)."
    assert found.standings[1].difference == pytest.approx(-0.4)
    assert found.standings[1].p == mcnemar(wrong.parts, right.parts)


def test_equal_models_are_tied_as_often_as_the_level_says() -> None:
    """Five of them, so ten tests: with each at 5 % some pair would differ in a third of the simulations; of 60, 3 are expected."""
    simulated = [ranked(dict(zip("abcde", losses(20, seed, *[0.0] * 5), strict=True))) for seed in range(60)]
    assert sum(len(found.tied) < 5 for found in simulated) <= 8
    assert sum(any(standing.p < 0.05 for standing in found.standings) for found in simulated) >= 10
    tied = next(found for found in simulated if len(found.tied) == 5)
    assert tied.verdict.startswith("No model is better than another (p ≥ 0.05 after Holm's correction for 10 comparisons)")


def test_one_model_is_compared_with_nothing() -> None:
    assert ranked({"only": Found((1.0, 2.0))}).verdict == "only alone was measured."
    with pytest.raises(ComparisonError, match="at least one"):
        ranked({})


def test_measurements_are_compared_as_they_are() -> None:
    one = Measurement(math.exp(2), "perplexity", "lower", PROTOCOL, (1.5, 2.5), 1.0)
    assert ranked({"one": one, "two": replace(one, parts=(1.4, 2.3))}).best == "two"


def test_right_and_wrong_are_tested_by_mcnemar_and_losses_by_random_signs() -> None:
    one, other = [1.0, 0.0, *[1.0] * 6], [*[0.0] * 7, 1.0]
    assert p_value(one, other) == mcnemar(one, other)
    assert p_value([0.5, *one], [0.25, *other]) == sign_flips([0.5, *one], [0.25, *other])


@pytest.mark.parametrize(("other", "words"), [
    (Found((1.0,)), "2 and 1 examples: expected as many"),
    (Found((1.0, math.nan)), "b: its value of example 1 is nan \\(1 of 2 are not finite\\)"),
    (Found((1.0, 2.0), "higher"), "of one lower values are better, of the other higher ones"),
    (Found((1.0, 2.0), protocol=PROTOCOL.replace("40 windows", "20 windows")), "'40 windows of 512' and '20 windows of 512'"),
    (Found((1.0, 2.0), protocol=PROTOCOL.replace("07fc71e9", "bcc1f6b6")), "their tokenizers differ .*per token are of other tokens"),
], ids=["length", "nan", "better", "protocol", "tokenizer"])
def test_what_is_no_pair_is_refused_in_one_line_with_the_reason(other: Found, words: str) -> None:
    for refuse in (lambda: check_pair(Found((1.0, 2.0)), other, ("a", "b")), lambda: ranked({"a": Found((1.0, 2.0)), "b": other})):
        with pytest.raises(ComparisonError, match=words) as caught:
            refuse()
        assert "\n" not in str(caught.value)


def test_the_first_part_in_which_protocols_differ_is_named() -> None:
    assert difference_of("a, b, c", "a, b, c") is None
    assert difference_of("a, b, c", "a, x, y") == ("b", "x")
    assert difference_of("a, b", "a, b, c") == ("nothing", "c")


def test_how_weights_are_stored_is_said_and_keeps_no_pair_apart() -> None:
    few = PROTOCOL.replace("float32", "float32, weights stored as int4 in groups of 64 by gptq")
    check_pair(Found((1.0, 2.0)), Found((1.0, 2.5), protocol=few))
    check_pair(Found((1.0, 2.0), protocol=few), Found((1.0, 2.5), protocol=few.replace("int4", "int8")))
    assert bare(few) == bare(PROTOCOL) == PROTOCOL
    assert (stored_of(few), stored_of(PROTOCOL)) == ("int4 in groups of 64 by gptq", "")
    with pytest.raises(ComparisonError, match=r"'float32' and 'bfloat16'"):
        check_pair(Found((1.0, 2.0)), Found((1.0, 2.5), protocol=few.replace("float32", "bfloat16")))
