"""Where activations wait changes nothing about them, and what was moved comes back."""

import tempfile
from pathlib import Path

import pytest
import torch

from prunus.calibration.placement import Placement
from prunus.errors import RecipeError


@pytest.mark.parametrize("activations", ["memory", "device", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_stored_comes_back_bit_for_bit(activations: str, dtype: torch.dtype) -> None:
    numbers = (torch.arange(24.0) / 7).view(2, 3, 4).to(dtype)
    with Placement("cpu", activations).hidden((2, 3, 4), dtype) as hidden:  # type: ignore[arg-type]
        hidden[:] = numbers
        assert hidden.dtype == dtype
        assert torch.equal(hidden, numbers)


def test_the_file_of_activations_is_gone_afterwards_even_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail() -> None:
        with Placement("cpu", "disk").hidden((2, 3), torch.float32) as hidden:
            hidden.zero_()
            (folder,) = tmp_path.iterdir()
            assert (folder / "hidden.bin").stat().st_size == 24
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["tpu9", "cuda:77", "meta:x", ""])
def test_a_device_that_is_not_there_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(RecipeError, match=rf"^device '{device}' cannot be used here: .* Use --device cpu\.$") as refused:
        Placement(device)
    assert "\n" not in str(refused.value)


def test_every_model_fits_where_there_is_no_card_to_fill() -> None:
    assert Placement("cpu").fits(torch.nn.Linear(2, 2, device="meta"))
