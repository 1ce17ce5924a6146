"""`describe` finds the family of a model and refuses models that are not as their family says."""

import pytest
import torch

from prunus.anatomy import describe, weight_shape
from prunus.errors import LoadError

from ..tiny import tiny_model


def test_paths_start_at_the_model_that_is_given_with_its_head_or_without() -> None:
    model = tiny_model("llama")
    assert describe(model).blocks[0].name == "model.layers.0"
    assert describe(model.model).blocks[0].name == "layers.0"


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    model = tiny_model("llama")
    model.config.model_type = "mamba"
    with pytest.raises(LoadError, match=r"architecture 'mamba' is unknown\. Known: bert, distilbert, .*llama"):
        describe(model)


def test_a_matrix_of_another_shape_than_the_config_says_is_refused_by_name() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 40, bias=False, device="meta")
    with pytest.raises(LoadError, match=r"^model\.layers\.1\.mlp\.up_proj: found shape \(40, 32\), expected \(48, 32\)"):
        describe(model)


def test_a_matrix_that_is_gone_is_refused_by_name() -> None:
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(LoadError, match=r"^model\.layers\.1\.mlp\.up_proj: no such matrix"):
        describe(model)


def test_a_conv1d_s_shape_is_given_as_out_in() -> None:
    assert weight_shape(tiny_model("gpt2").transformer.h[0].mlp.c_fc) == (128, 32)
    assert weight_shape(torch.nn.Linear(3, 5, device="meta")) == (5, 3)
