"""Weights are read as float32 copies and written back in the module's own dtype and layout."""

from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from prunus.problem import LayerSolution
from prunus.sites import Producer
from prunus.surgery.write import clear_rows, read_weight, write

from ..problems import generator


def module(kind: str, bias: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """4 outputs, 6 inputs, with numbers drawn by a seed."""
    with torch.random.fork_rng(devices=[]):
        made = Conv1D(4, 6) if kind == "conv1d" else torch.nn.Linear(6, 4, bias=bias)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator(0)).to(dtype)
    return made


def solution(bias: bool = False) -> LayerSolution:
    weight = torch.randn(4, 6, generator=generator(1))
    mask = weight > 0
    return LayerSolution(weight * mask, mask, torch.arange(4.0) if bias else None)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_reading_gives_out_in_and_a_copy(kind: str) -> None:
    made = module(kind)
    weight = read_weight(made)
    expected = made.weight.T if kind == "conv1d" else made.weight
    assert weight.shape == (4, 6)
    assert torch.equal(weight, expected)
    weight.zero_()
    assert (made.weight != 0).all()


def test_half_precision_is_read_as_float32_without_loss() -> None:
    made = module("linear", dtype=torch.bfloat16)
    assert read_weight(made).dtype == torch.float32
    assert torch.equal(read_weight(made).bfloat16(), made.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_what_is_written_is_what_the_module_computes_with(kind: str, dtype: torch.dtype) -> None:
    made, given = module(kind, dtype=dtype), solution()
    old_bias, parameter = made.bias.clone(), made.weight
    write(made, given)
    assert made.weight is parameter
    assert made.weight.dtype == dtype
    assert torch.equal(read_weight(made), given.weight.to(dtype).float())
    assert ((read_weight(made) == 0) == ~given.mask).all()
    assert torch.equal(made.bias, old_bias)
    x = torch.randn(3, 6, generator=generator(2)).to(dtype)
    assert torch.allclose(made(x).float(), x.float() @ given.weight.T + old_bias.float(), atol=0.05 if dtype != torch.float32 else 1e-5)


def test_writing_goes_into_the_tensor_that_others_share() -> None:
    """Tied weights stay tied."""
    made = module("linear")
    other = torch.nn.Linear(6, 4, device="meta")
    other.weight = made.weight
    write(made, solution())
    assert torch.equal(other.weight, solution().weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_solution_s_bias_is_added(dtype: torch.dtype) -> None:
    made = module("linear", dtype=dtype)
    old = made.bias.clone()
    write(made, solution(bias=True))
    assert torch.equal(made.bias, old + torch.arange(4.0, dtype=dtype))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_clearing_rows_zeroes_those_of_the_removed_channels_and_their_biases_alone(kind: str) -> None:
    made = module(kind)
    model = torch.nn.ModuleDict({"a": made})
    before, bias = read_weight(made), made.bias.clone()
    clear_rows(model, [Producer("a", rows=1, offset=2)], torch.tensor([1]))  # channel 1 from row 2 on: row 3
    expected = before.clone()
    expected[3] = 0
    assert torch.equal(read_weight(made), expected)
    assert torch.equal(made.bias, bias * torch.tensor([1, 1, 1, 0]))


def test_a_channel_of_several_rows_loses_all_of_them() -> None:
    made = module("linear", bias=False)
    clear_rows(torch.nn.ModuleDict({"a": made}), [Producer("a", rows=2)], torch.tensor([0]))
    assert (read_weight(made)[:2] == 0).all()
    assert (read_weight(made)[2:] != 0).all()
