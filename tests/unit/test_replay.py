"""What is kept of a pass, where, and for how long."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.calibration.blocks import replaced
from prunus.calibration.replay import Outputs

CPU = torch.device("cpu")


@pytest.fixture(params=["file", "device"])
def outputs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outputs]:
    if request.param == "device":
        yield Outputs(CPU, None, room=10_000)
        return
    with (tmp_path / "outputs").open("wb+", buffering=0) as file:
        yield Outputs(CPU, file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_what_was_put_comes_back_in_the_form_it_had(outputs: Outputs, dtype: torch.dtype) -> None:
    first, second = torch.arange(12).view(3, 4).T.to(dtype), torch.ones(2, dtype=dtype)
    outputs.put(0, "tensor", first)
    outputs.put(0, "tuple", (second, None))
    assert torch.equal(outputs.get(0, "tensor"), first)
    found = outputs.get(0, "tuple")
    assert torch.equal(found[0], second)
    assert found[1] is None
    assert outputs.get(0, "other") is None


def test_passes_are_kept_apart(outputs: Outputs) -> None:
    for turn in (0, 4):
        outputs.put(turn, "q", torch.full((2,), float(turn)))
    assert outputs.get(0, "q").tolist() == [0, 0]


def test_the_caller_may_change_what_it_put_and_what_it_got(outputs: Outputs) -> None:
    value = torch.zeros(3)
    outputs.put(0, "q", value)
    value += 1
    outputs.get(0, "q").add_(1)
    assert outputs.get(0, "q").tolist() == [0, 0, 0]


def test_a_module_s_output_takes_the_place_of_those_inside_it(outputs: Outputs) -> None:
    for name in ("attn.q", "attn.o", "attention", "attn"):
        outputs.put(0, name, torch.zeros(2))
    assert [outputs.get(0, name) is not None for name in ("attn.q", "attn.o", "attention", "attn")] == [False, False, True, True]


def test_what_is_no_tensor_is_not_kept(outputs: Outputs) -> None:
    outputs.put(0, "q", {"hidden": torch.zeros(2)})
    outputs.put(0, "k", (torch.zeros(2), "cache"))
    assert outputs.get(0, "q") is None
    assert outputs.get(0, "k") is None


def test_room_on_the_device_is_taken_and_given_back() -> None:
    outputs = Outputs(CPU, None, room=100)
    outputs.put(0, "attn.q", torch.zeros(10))
    outputs.put(0, "attn.k", torch.zeros(20))
    assert outputs.get(0, "attn.k") is None
    outputs.put(0, "attn", torch.zeros(15))
    assert outputs.get(0, "attn") is not None
    assert outputs.room == 40
    outputs.clear()
    assert outputs.room == 100
    assert outputs.get(0, "attn") is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_only_means_that_nothing_is_kept() -> None:
    """/dev/full is Linux's file that has no room."""
    with Path("/dev/full").open("rb+", buffering=0) as file:
        outputs = Outputs(CPU, file)
        outputs.put(0, "q", torch.zeros(3))
        assert outputs.get(0, "q") is None


def test_the_file_is_written_over_by_the_next_block() -> None:
    with Outputs.on(CPU) as outputs:
        for _ in range(5):
            outputs.put(0, "q", torch.zeros(1000))
            outputs.clear()
        assert outputs.file is not None
        assert outputs.file.seek(0, 2) == 4000


def test_a_forward_that_somebody_had_set_is_put_back() -> None:
    plain, hooked = nn.Identity(), nn.Identity()

    def earlier(x: Tensor) -> Tensor:
        return x + 1

    hooked.forward = earlier
    with replaced(plain, lambda x: x), replaced(hooked, lambda x: x):
        assert plain(torch.ones(2)).tolist() == hooked(torch.ones(2)).tolist() == [1, 1]
    assert "forward" not in plain.__dict__
    assert hooked(torch.ones(2)).tolist() == [2, 2]
