"""A number is kept with where it was measured."""

import pytest

from prunus.environment import Clock, environment, peak_bytes

from ..tiny import tiny_model


def test_the_model_the_versions_and_the_machine_are_named() -> None:
    found = environment(tiny_model(), "cpu", "here/model")
    assert found["model"] == "here/model"
    assert (found["dtype"], found["device"], found["class"]) == ("float32", "cpu", "LlamaForCausalLM")
    assert {"prunus", "torch", "transformers", "python", "machine"} <= set(found)
    assert "1 threads" in found["machine"]
    assert environment(tiny_model(), "cpu")["model"] == "llama"


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_bytes()
    block = bytearray(64 * 2**20)
    assert 50 * 2**20 < before <= peak_bytes() < 2**40
    assert len(block) == 64 * 2**20


def test_a_stage_that_is_timed_apart_does_not_count_for_the_one_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says what time it is."""
    now = [0.0]
    monkeypatch.setattr("prunus.environment.time.perf_counter", lambda: now[0])
    clock = Clock()
    with clock("searching"):
        now[0] += 1
        with clock.apart("training"):
            now[0] += 10
        with clock("looking"):
            now[0] += 2
    with clock.apart("training"):
        now[0] += 20
    assert clock.seconds == {"training": 30, "looking": 2, "searching": 3}
