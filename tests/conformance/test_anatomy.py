"""What every family file says about a model is true of the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.anatomy import describe, weight_shape
from prunus.lookup import names
from prunus.sites import ChannelSite, LinearSite, SublayerSite
from prunus.surgery.write import clear_rows

from ..tiny import FAMILIES, tiny_model

every_family = pytest.mark.parametrize("family", FAMILIES)
TOKENS = torch.arange(2 * 24).view(2, 24) * 5 % 256


@torch.no_grad()
def answer(model: Any) -> Tensor:
    cached = {"use_cache": False} if model.can_generate() else {}
    return model(input_ids=TOKENS, **cached).logits


def test_every_family_has_a_tiny_model() -> None:
    assert sorted(FAMILIES) == names("anatomy")


@every_family
def test_names_resolve_and_shapes_match(family: str) -> None:
    model = tiny_model(family)
    for site in describe(model).sites("linear"):
        assert isinstance(site, LinearSite)
        module = model.get_submodule(site.name)
        assert weight_shape(module) == site.shape
        assert module.weight.numel() == site.size


@every_family
def test_every_matrix_of_the_blocks_is_a_site_exactly_once(family: str) -> None:
    model = tiny_model(family)
    anatomy = describe(model)
    matrices = [f"{block.name}.{name}" for block in anatomy.blocks
                for name, module in model.get_submodule(block.name).named_modules()
                if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"]
    assert sorted(site.name for site in anatomy.sites("linear")) == sorted(matrices)


@every_family
def test_the_blocks_are_all_blocks_in_the_order_in_which_they_run(family: str) -> None:
    model = tiny_model(family)
    ran: list[str] = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2].isdigit():
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    answer(model)
    assert [block.name for block in describe(model).blocks] == ran
    assert len(ran) == 2


@every_family
def test_linear_sites_stand_in_the_order_in_which_they_run_up_to_those_that_run_side_by_side(family: str) -> None:
    """The consumer of a branch comes after its producers, and attention before the MLP."""
    for block in describe(tiny_model(family)).blocks:
        order = [site.name for site in block.sites if isinstance(site, LinearSite)]
        for site in block.sites:
            if isinstance(site, ChannelSite):
                assert all(order.index(producer.name) < order.index(site.consumer) for producer in site.producers)


@contextmanager
def inputs_of(model: nn.Module, sites: tuple[Any, ...]) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    handles = [model.get_submodule(site.name).register_forward_pre_hook(
        lambda _, given, name=site.name: seen.__setitem__(name, given[0])) for site in sites]
    yield seen
    for handle in handles:
        handle.remove()


@every_family
def test_sites_share_reads_exactly_if_they_are_given_the_same_tensor(family: str) -> None:
    model = tiny_model(family)
    sites = describe(model).sites("linear")
    with inputs_of(model, sites) as seen:
        answer(model)
    for one in sites:
        for other in sites:
            same = seen[one.name].shape == seen[other.name].shape and torch.equal(seen[one.name], seen[other.name])
            assert same == (one.reads == other.reads), f"{one.name} and {other.name}"


@every_family
def test_without_the_rows_that_made_them_removed_channels_change_nothing_more(family: str) -> None:
    """Zeroing a channel's columns of the consumer takes it away; zeroing the right producer rows then changes nothing,
    and the wrong ones, or any too many, do."""
    columns_only, rows_too, dense = (tiny_model(family) for _ in range(3))
    assert describe(dense).sites("channel")
    for site in describe(dense).sites("channel"):
        assert isinstance(site, ChannelSite)
        removed = torch.arange(site.count)[1::2]
        for model in (columns_only, rows_too):
            _clear_columns(model.get_submodule(site.consumer), site, removed)
        clear_rows(rows_too, site.producers, removed)
    assert float((answer(columns_only) - answer(dense)).abs().max()) > 1e-3
    assert float((answer(rows_too) - answer(columns_only)).abs().max()) <= 1e-5


@torch.no_grad()
def _clear_columns(consumer: Any, site: ChannelSite, removed: Tensor) -> None:
    columns = (removed[:, None] * site.width + torch.arange(site.width)).flatten()
    weight = consumer.weight.T if type(consumer).__name__ == "Conv1D" else consumer.weight
    weight[:, columns] = 0


@every_family
def test_the_producer_rows_of_all_channels_are_all_rows_that_they_could_be(family: str) -> None:
    """Every row of every producer belongs to exactly one channel: nothing is left behind by a cut."""
    model = tiny_model(family)
    for site in describe(model).sites("channel"):
        assert isinstance(site, ChannelSite)
        rows: dict[str, list[int]] = {}
        for producer in site.producers:
            start = producer.offset
            rows.setdefault(producer.name, []).extend(range(start, start + site.count * producer.rows))
        for name, owned in rows.items():
            assert sorted(owned) == list(range(weight_shape(model.get_submodule(name))[0]))
        assert site.count * site.width == weight_shape(model.get_submodule(site.consumer))[1]
        parts = {site.consumer, *rows}
        assert site.size == sum(model.get_submodule(name).weight.numel() for name in parts)


@every_family
def test_clearing_a_branch_s_output_is_the_same_as_skipping_the_branch(family: str) -> None:
    """Whatever enters a cleared branch leaves as nothing: its other matrices may be anything."""
    model, scrambled = tiny_model(family), tiny_model(family)
    for site in describe(model).sites("sublayer"):
        assert isinstance(site, SublayerSite)
        for changed in (model, scrambled):
            for parameter in changed.get_submodule(site.output).parameters():
                parameter.data.zero_()
        inner = [other.name for other in describe(model).sites("linear")
                 if other.name.startswith(f"{site.name}.") and other.name != site.output]
        for name in inner:
            scrambled.get_submodule(name).weight.data.mul_(3)
    assert torch.equal(answer(model), answer(scrambled))


@pytest.mark.parametrize(("family", "changes"), [
    ("llama", {"num_key_value_heads": 4}), ("llama", {"num_key_value_heads": 1}), ("llama", {"head_dim": 16}),
    ("llama", {"attention_bias": True, "mlp_bias": True}), ("gemma2", {"head_dim": 8}), ("phi3", {"num_key_value_heads": 4}),
    ("gpt2", {"n_inner": 40}), ("gpt_neox", {"use_parallel_residual": False}), ("opt", {"do_layer_norm_before": False}),
    ("opt", {"word_embed_proj_dim": 16}), ("qwen2", {"num_key_value_heads": 1}), ("gpt_neox", {"attention_bias": False}),
], ids=str)
def test_variants_of_a_family_keep_the_laws(family: str, changes: dict[str, Any]) -> None:
    columns_only, rows_too = tiny_model(family, **changes), tiny_model(family, **changes)
    for site in describe(rows_too).sites("channel"):
        assert isinstance(site, ChannelSite)
        removed = torch.arange(site.count)[::2]
        for model in (columns_only, rows_too):
            _clear_columns(model.get_submodule(site.consumer), site, removed)
        clear_rows(rows_too, site.producers, removed)
    assert float((answer(rows_too) - answer(columns_only)).abs().max()) <= 1e-5
