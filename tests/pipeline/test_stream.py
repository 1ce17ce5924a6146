"""What calibration sees is what the model computes: every activation, every mask, every rotation, in every family."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.calibration.placement import Placement
from prunus.calibration.stream import stream
from prunus.errors import CalibrationError
from prunus.sites import Anatomy, LinearSite
from prunus.stats import InputStats

from ..problems import generator
from ..tiny import FAMILIES, tiny_model

EPSILON = torch.finfo(torch.float32).eps


def drawn_tokens(samples: int = 5, length: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(0, 250, (samples, length), generator=generator(seed))


def linear(anatomy: Anatomy) -> list[LinearSite]:
    return [site for site in anatomy.sites("linear") if isinstance(site, LinearSite)]


@contextmanager
def hooked(model: Any, sites: list[LinearSite]) -> Iterator[dict[str, InputStats]]:
    stats = {site.name: InputStats(site.shape[1], "gram", name=site.name) for site in sites}
    handles = [model.get_submodule(name).register_forward_pre_hook(lambda _, given, moments=moments: moments.update(given[0]))
               for name, moments in stats.items()]
    yield stats
    for handle in handles:
        handle.remove()


@torch.no_grad()
def by_hooks(model: Any, tokens: Tensor) -> dict[str, InputStats]:
    """Statistics of the whole model, one sequence at a time, by its own forward."""
    with hooked(model, linear(describe(model))) as stats:
        for row in tokens:
            model(input_ids=row[None], **({"use_cache": False} if model.can_generate() else {}))
    return stats


def by_stream(model: Any, tokens: Tensor, needs: Any = "gram", **settings: Any) -> dict[str, InputStats]:
    anatomy = describe(model)
    views = [view for block in stream(model, anatomy, linear(anatomy), tokens, needs, **settings) for view in block]
    return {view.site.name: view.stats for view in views}


def assert_same_moments(found: dict[str, InputStats], expected: dict[str, InputStats], tolerance: float) -> None:
    assert list(found) == list(expected)
    for name, stats in found.items():
        assert stats.tokens == expected[name].tokens
        size = float(expected[name].gram.abs().max())
        assert float((stats.gram - expected[name].gram).abs().max()) <= tolerance * size, name
        assert float((stats.mean - expected[name].mean).abs().max()) <= tolerance * size**0.5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_statistics_equal_those_of_the_whole_model(family: str) -> None:
    """Batches of 2, 2 and 1 against single sequences; 1e-5: rounding of sums of 120 tokens through two blocks."""
    tokens = drawn_tokens()
    assert_same_moments(by_stream(tiny_model(family), tokens, batch=2), by_hooks(tiny_model(family), tokens), 1e-5)


def test_local_and_global_attention_get_their_own_masks_and_rotations() -> None:
    """Both kinds of layer in one model, sequences three times as long as the window, and bases that differ."""
    changes = {"num_hidden_layers": 4, "sliding_window": 8, "rope_theta": 1e6, "rope_local_base_freq": 100.0}
    for family in ("gemma2", "gemma3_text"):
        kinds = tiny_model(family, **changes).config.layer_types
        assert len(set(kinds)) == 2
        tokens = drawn_tokens(3, 32)
        found, expected = (how(tiny_model(family, **changes), tokens) for how in (by_stream, by_hooks))
        assert_same_moments(found, expected, 1e-5)


@pytest.mark.parametrize("changes", [
    {"attn_implementation": "eager"}, {"attn_implementation": "sdpa"}, {"rope_parameters": {"rope_type": "linear", "factor": 4.0,
                                                                                     "rope_theta": 1e4}},
], ids=["eager", "sdpa", "scaled rotation"])
def test_ways_to_compute_attention_are_followed(changes: dict[str, Any]) -> None:
    assert_same_moments(by_stream(tiny_model(**changes), drawn_tokens()), by_hooks(tiny_model(**changes), drawn_tokens()), 1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_the_batch_size_changes_nothing_but_rounding(batch: int) -> None:
    reference = by_stream(tiny_model(), drawn_tokens(), batch=5)
    assert_same_moments(by_stream(tiny_model(), drawn_tokens(), batch=batch), reference, 1e-5)


@pytest.mark.parametrize("activations", ["disk", "device"])
def test_where_activations_wait_changes_nothing_at_all(activations: Any) -> None:
    found = by_stream(tiny_model(), drawn_tokens(), placement=Placement("cpu", activations))
    for name, stats in by_stream(tiny_model(), drawn_tokens()).items():
        assert torch.equal(found[name].gram, stats.gram)


def test_sites_that_read_the_same_share_one_accumulator_that_counts_every_token_once() -> None:
    stats = by_stream(tiny_model(), drawn_tokens(5, 24))
    first = "model.layers.0"
    assert stats[f"{first}.self_attn.q_proj"] is stats[f"{first}.self_attn.k_proj"] is stats[f"{first}.self_attn.v_proj"]
    assert stats[f"{first}.mlp.gate_proj"] is stats[f"{first}.mlp.up_proj"]
    assert len({id(moments) for moments in stats.values()}) == 8
    assert {moments.tokens for moments in stats.values()} == {120}


def test_later_blocks_see_what_the_pruned_model_computes() -> None:
    """Zero the first block's matrices between the yields: the second block's statistics are those of the changed model."""
    model, changed, anatomy = tiny_model(), tiny_model(), describe(tiny_model())
    tokens = drawn_tokens()
    found: dict[str, InputStats] = {}
    for views in stream(model, anatomy, linear(anatomy), tokens, "gram"):
        for view in views:
            found[view.site.name] = view.stats
            if view.site.block == 0:
                view.module.weight.data.mul_(0.5)
    for site in linear(anatomy):
        if site.block == 0:
            changed.get_submodule(site.name).weight.data.mul_(0.5)
    expected, dense = by_hooks(changed, tokens), by_hooks(tiny_model(), tokens)
    second = {name: stats for name, stats in found.items() if ".1." in name}
    assert_same_moments(second, {name: expected[name] for name in second}, 1e-5)
    name = "model.layers.1.mlp.down_proj"
    assert not torch.allclose(second[name].gram, dense[name].gram, rtol=0.1)
    first = {name: stats for name, stats in found.items() if ".0." in name}
    assert_same_moments(first, {name: dense[name] for name in first}, 1e-5)


def test_only_the_sites_that_are_asked_for_are_seen_and_nothing_runs_after_the_last() -> None:
    model = tiny_model()
    anatomy = describe(model)
    wanted = [site for site in linear(anatomy) if site.name == "model.layers.0.mlp.up_proj"]
    model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda *_: pytest.fail("computed what nobody reads"))
    blocks = list(stream(model, anatomy, wanted, drawn_tokens(), "power"))
    assert [[view.site.name for view in views] for views in blocks] == [["model.layers.0.mlp.up_proj"]]


def test_without_needs_the_model_does_not_run() -> None:
    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    blocks = list(stream(model, describe(model), linear(describe(model)), torch.empty(0, 0).long(), "nothing"))
    assert [len(views) for views in blocks] == [7, 7]


def test_finished_blocks_are_given_without_statistics_and_later_ones_as_ever() -> None:
    model = tiny_model()
    anatomy = describe(model)
    first, second = stream(model, anatomy, linear(anatomy), drawn_tokens(), "gram", done=frozenset({0}))
    assert {view.stats.tokens for view in first} == {0}
    expected = by_stream(tiny_model(), drawn_tokens())
    assert all(torch.equal(view.stats.gram, expected[view.site.name].gram) for view in second)


@pytest.mark.parametrize("end", ["exhausted", "closed", "failed"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_model_is_left_as_it_was(family: str, end: str) -> None:
    model = tiny_model(family).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    forwards = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    anatomy = describe(model)
    blocks = stream(model, anatomy, linear(anatomy), drawn_tokens(), "gram")
    next(blocks)
    if end == "exhausted":
        list(blocks)
    elif end == "closed":
        blocks.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            blocks.throw(KeyboardInterrupt)
    assert model.training
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert {name: module.__dict__.get("forward") for name, module in model.named_modules()} == forwards
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_is_off_while_calibrating() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    assert_same_moments(by_stream(model, drawn_tokens()), by_hooks(model.eval(), drawn_tokens()), 1e-5)


def test_activations_that_are_not_finite_are_refused_by_the_block_that_made_them() -> None:
    model = tiny_model()
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("inf")
    anatomy = describe(model)
    with pytest.raises(CalibrationError, match=r"^model\.layers\.0: its output is not finite"):
        list(stream(model, anatomy, linear(anatomy), drawn_tokens(), "gram"))


def test_half_precision_activations_are_streamed_in_half_precision() -> None:
    tokens = drawn_tokens()
    found = by_stream(tiny_model(dtype=torch.bfloat16), tokens)
    assert_same_moments(found, by_hooks(tiny_model(dtype=torch.bfloat16), tokens), 0.02)
    assert found["model.layers.1.mlp.down_proj"].gram.dtype == torch.float32
