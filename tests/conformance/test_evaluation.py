"""The laws that every metric obeys."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.evaluation import Context, Measurement, Metric
from prunus.lookup import find, names

from ..asked import rows_of, written
from ..tiny import tiny_model, tiny_tokenizer

every_metric = pytest.mark.parametrize("name", names("evaluation"))
every_exact_metric = pytest.mark.parametrize("name", [name for name in names("evaluation")
                                                      if not getattr(find("evaluation", name), "timed", False)])


@pytest.fixture
def measure(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PRUNUS_DATA", str(text_file.parent))
    written(text_file.parent / "piqa", validation=rows_of("piqa"))

    def run(name: str, model: Any) -> Measurement:
        """The first number of the metric."""
        known = find("evaluation", name).__dataclass_fields__
        if name == "tasks":
            pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'prunus[tasks]')")
        settings = {"corpus": str(text_file), "corpora": (str(text_file),), "length": 32, "tokens": 256, "prompt": 16, "answer": 2,
                    "repetitions": 8, "names": ("piqa",), "limit": 8}
        metric = find("evaluation", name)(**{key: value for key, value in settings.items() if key in known})
        assert isinstance(metric, Metric)
        found = metric.measure(model, Context(tiny_tokenizer()))
        return found[0] if isinstance(found, tuple) else found
    return run


@every_exact_metric
def test_the_same_model_has_the_same_number_bit_for_bit(name: str, measure: Any) -> None:
    first, again = measure(name, tiny_model()), measure(name, tiny_model())
    assert (first.value, first.parts, first.protocol) == (again.value, again.parts, again.protocol)


@every_exact_metric
def test_another_model_has_another_number(name: str, measure: Any) -> None:
    first, other = measure(name, tiny_model()), measure(name, tiny_model(seed=1))
    assert (first.value, first.examples) != (other.value, other.examples)


@every_metric
def test_the_model_is_left_as_it_was(name: str, measure: Any) -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dropped, plain = measure(name, model), measure(name, tiny_model("gpt2"))
    assert dropped.parts == pytest.approx(plain.parts) or dropped.kind == "rounds"
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@every_metric
def test_a_number_says_what_it_is(name: str, measure: Any) -> None:
    measured = measure(name, tiny_model())
    kind = find("evaluation", name)
    assert (measured.unit, measured.better) == (kind.unit, kind.better)
    assert len(measured.parts) == 8
    assert measured.seconds > 0
    assert "\n" not in measured.protocol
    assert measured.label
    assert measured.protocol.startswith(measured.label)
