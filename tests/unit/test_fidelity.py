"""Everything that one pass through a text says of a model, beside the same computed in the plainest way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.errors import RecipeError
from prunus.evaluation import Context, Measurement
from prunus.evaluation.fidelity import Fidelity
from prunus.evaluation.perplexity import Perplexity

from ..tiny import tiny_model, tiny_tokenizer

SIZES: dict[str, Any] = {"length": 32, "tokens": 320}


@pytest.fixture
def texts(tmp_path: Path, prose: Callable[[int, int], str]) -> tuple[str, ...]:
    for name, seed in (("one", 0), ("other", 1)):
        (tmp_path / f"{name}.txt").write_text(prose(400, seed), encoding="utf-8")
    return str(tmp_path / "one.txt"), str(tmp_path / "other.txt")


def logits_of(model: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every window of 32 tokens, and the tokens that follow."""
    tokens = tiny_tokenizer()(Path(text).read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0, :320].view(10, 32)
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, :-1].double(), tokens[:, 1:]


def by_name(found: tuple[Measurement, ...]) -> dict[str, Measurement]:
    return {item.label.partition(" test ")[2]: item for item in found}


def test_every_number_is_what_its_definition_says(texts: tuple[str, ...]) -> None:
    dense, model, context = tiny_model(), tiny_model(seed=1), Context(tiny_tokenizer(), dense={})
    metric = Fidelity((texts[0],), **SIZES, bins=10, top=260)
    first, found = by_name(metric.measure(dense, context)), by_name(metric.measure(model, context))
    (theirs, _), (ours, right) = logits_of(dense, texts[0]), logits_of(model, texts[0])
    exact = (theirs.softmax(-1) * (theirs.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean(1)
    assert found["divergence from dense"].parts == pytest.approx(exact.tolist(), rel=1e-4)
    assert found["divergence from dense"].value == pytest.approx(float(exact.mean()), rel=1e-4)
    agreed = (theirs.argmax(-1) == ours.argmax(-1)).double().mean(1)
    assert found["agreement with dense"].parts == pytest.approx(agreed.tolist())
    sure, said = ours.softmax(-1).max(-1)
    error = 0.0
    for bin_ in range(10):
        here = ((sure * 10).long().clamp(max=9) == bin_)
        if here.any():
            error += float(here.double().mean()) * abs(float(sure[here].mean()) - float((said == right)[here].double().mean()))
    assert found["calibration error"].value == pytest.approx(error, rel=1e-4)
    assert (first["divergence from dense"].value, first["agreement with dense"].value) == (0.0, 1.0)


def test_perplexity_is_that_of_the_metric_of_this_name_and_can_be_paired_with_it(texts: tuple[str, ...]) -> None:
    found = by_name(Fidelity((texts[0],), **SIZES).measure(tiny_model(), Context(tiny_tokenizer())))
    exact = Perplexity(texts[0], **SIZES).measure(tiny_model(), Context(tiny_tokenizer()))
    assert found["perplexity"].protocol == exact.protocol
    assert found["perplexity"].parts == pytest.approx(exact.parts)
    assert set(found) == {"perplexity", "calibration error"}  # there is no dense model to be compared with


def test_fewer_tokens_that_are_told_apart_make_the_divergence_smaller_never_larger(texts: tuple[str, ...]) -> None:
    values = []
    for top in (260, 40, 5, 1):
        context, metric = Context(tiny_tokenizer(), dense={}), Fidelity((texts[0],), **SIZES, top=top)
        metric.measure(tiny_model(), context)
        values.append(by_name(metric.measure(tiny_model(seed=1), context))["divergence from dense"].value)
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0


def test_one_pass_gives_everything(texts: tuple[str, ...]) -> None:
    """The body runs once over every text, of the dense model and of the other."""
    context, metric = Context(tiny_tokenizer(), dense={}), Fidelity(texts, **SIZES)
    for seed in (0, 1):
        model, read = tiny_model(seed=seed), [0]
        body = model.base_model.forward

        def counted(read: list[int] = read, body: Any = body, **named: Any) -> Any:
            read[0] += named["input_ids"].numel()
            return body(**named)

        model.base_model.forward = counted
        assert len(metric.measure(model, context)) == 2 * 4
        assert read[0] == 2 * 320


def test_intervals_hold_the_value_and_pairs_are_narrower(texts: tuple[str, ...]) -> None:
    context, metric = Context(tiny_tokenizer(), dense={}), Fidelity((texts[0],), **SIZES)
    dense, model = (by_name(metric.measure(tiny_model(seed=seed), context)) for seed in (0, 1))
    for name, found in model.items():
        low, high = found.interval
        assert low <= found.value <= high, name
    word, difference, (low, high) = model["calibration error"].beside(dense["calibration error"])
    assert word == "difference"
    assert low <= difference <= high
    assert difference == model["calibration error"].value - dense["calibration error"].value
    assert model["perplexity"].beside(dense["perplexity"])[0] == "ratio"


def test_a_model_that_reads_other_tokens_is_not_compared(texts: tuple[str, ...]) -> None:
    context, metric = Context(tiny_tokenizer(), dense={}), Fidelity((texts[0],), **SIZES)
    metric.measure(tiny_model(), context)
    with pytest.raises(RecipeError, match="has read other tokens"):
        metric.measure(tiny_model(), Context(tiny_tokenizer(bos=True), dense=context.dense))


@pytest.mark.parametrize(("settings", "reason"), [
    ({"corpora": ()}, "expected at least one"), ({"corpora": ("c4", "c4")}, "every one once"), ({"bins": 0}, "at least 1 of each"),
    ({"length": 1}, "at least 2 tokens"), ({"length": 64, "tokens": 32}, "less than one window")])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        Fidelity(**settings)


def test_models_that_predict_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="predicts the next token"):
        Fidelity().measure(tiny_model("bert"), Context(tiny_tokenizer()))


def test_two_metrics_of_one_text_do_not_mix_what_they_remember(texts: tuple[str, ...]) -> None:
    context = Context(tiny_tokenizer(), dense={})
    metrics = [Fidelity((texts[0],), length=length, tokens=320) for length in (32, 16)]
    for model in (tiny_model(), tiny_model(seed=1)):
        found = [by_name(metric.measure(model, context))["divergence from dense"].value for metric in metrics]
    alone = Context(tiny_tokenizer(), dense={})
    metrics[1].measure(tiny_model(), alone)
    assert found[1] == by_name(metrics[1].measure(tiny_model(seed=1), alone))["divergence from dense"].value > 0
