"""Speed is measured in turn; figures themselves are for benchmarks."""

from pathlib import Path
from typing import Any

import pytest

from prunus.environment import peak_bytes
from prunus.errors import LoadError, RecipeError
from prunus.export.gguf import GGUF
from prunus.loading import Loaded
from prunus.speed import in_llama_cpp, in_pytorch, memory_in_llama_cpp, memory_in_pytorch, ratio

from ..pipeline.test_gguf import SHAPE, tokenizer
from ..tiny import CAUSAL, tiny_model


def test_a_ratio_is_that_of_rounds() -> None:
    assert ratio([1.0, 2.0, 4.0], [2.0, 2.0, 12.0]) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize("family", CAUSAL)
def test_every_family_reads_and_writes_in_turn(family: str) -> None:
    order: list[int] = []
    models: list[Any] = [tiny_model(family), tiny_model(family)]
    for place, model in enumerate(models):
        model.register_forward_pre_hook(lambda *_, place=place: order.append(place))
    first, second = in_pytorch(models, prompt=16, answer=3, repetitions=2)
    assert order == ([0] * 4 + [1] * 4) * 3
    assert len(first.prefill) == len(second.decode) == 2
    assert min(*first.prefill, *first.decode) > 0
    assert [16 / rate for rate in first.prefill] == pytest.approx(first.first)
    assert first.bytes == 4 * sum(parameter.numel() for parameter in models[0].parameters())


def test_llama_cpp_runs_files_in_turn(tmp_path: Path) -> None:
    files = []
    for dtype in ("F32", "F16"):
        files.append(tmp_path / f"{dtype}.gguf")
        GGUF(dtype=dtype).save(Loaded(tiny_model(**SHAPE), tokenizer(), "tiny"), files[-1])  # type: ignore[arg-type]
    first, second = in_llama_cpp(files, prompt=16, answer=4, repetitions=2)
    assert len(first.prefill) == len(second.decode) == 2
    assert min(*first.prefill, *second.decode) > 0
    assert [16 / rate for rate in first.prefill] == pytest.approx(first.first, rel=0.01)
    assert [first.bytes, second.bytes] == [file.stat().st_size for file in files]
    assert memory_in_llama_cpp(files[0], prompt=16, answer=4) > files[0].stat().st_size


def test_memory_is_that_of_a_process_of_its_own(checkpoint: Any) -> None:
    """However much the process that asks has used itself, as getrusage would have it."""
    large = bytearray(2**30)
    large[:: 2**12] = bytes(2**18)
    assert 50 * 2**20 < memory_in_pytorch(str(checkpoint()), prompt=16, answer=2) < peak_bytes()


def test_what_cannot_be_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not predict the next token"):
        in_pytorch([tiny_model("bert")])
    with pytest.raises(LoadError, match="no such file"):
        in_llama_cpp([tmp_path / "none.gguf"])
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LoadError, match=r"llama\.cpp cannot run"):
        in_llama_cpp([tmp_path / "bad.gguf"])
    with pytest.raises(LoadError, match=r"PyTorch cannot run nowhere/at-all: .*no such"):
        memory_in_pytorch("nowhere/at-all")
