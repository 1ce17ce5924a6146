"""What calibration sees is what the model computes: every activation, every mask, every rotation, in every family."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.anatomy import describe
from prunus.calibration.placement import Placement
from prunus.calibration.replay import Outputs
from prunus.calibration.stream import stream
from prunus.errors import CalibrationError
from prunus.sites import Anatomy, Block, LinearSite
from prunus.stats import InputStats

from ..problems import generator
from ..tiny import FAMILIES, tiny_classifier, tiny_model

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


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "opt", "gpt2", "gpt_neox"])
def test_a_decoder_that_classifies_keeps_no_keys_of_the_batch_before(family: str) -> None:
    tokens = drawn_tokens()
    assert_same_moments(by_stream(tiny_classifier(family), tokens, batch=2), by_hooks(tiny_classifier(family), tokens), 1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_model_of_a_single_block_is_streamed_too(family: str) -> None:
    tokens, model = drawn_tokens(), tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 1})
    assert_same_moments(by_stream(model, tokens, batch=2), by_hooks(model, tokens), 1e-5)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_sees_what_the_pruned_model_computes_up_to_it(family: str) -> None:
    """Halve each matrix as soon as it is given: the inputs are those of a model in which all matrices are halved."""
    model, halved, anatomy = tiny_model(family), tiny_model(family), describe(tiny_model(family))
    tokens = drawn_tokens()
    found: dict[str, InputStats] = {}
    for views in stream(model, anatomy, linear(anatomy), tokens, "gram", batch=2):
        for view in views:
            found[view.site.name] = view.stats
            view.module.weight.data.mul_(0.5)
    for site in linear(anatomy):
        halved.get_submodule(site.name).weight.data.mul_(0.5)
    assert_same_moments(found, by_hooks(halved, tokens), 1e-5)
    last, dense = linear(anatomy)[-1].name, by_hooks(tiny_model(family), tokens)
    assert not torch.allclose(found[last].gram, dense[last].gram, rtol=0.1)


class Counter(TorchDispatchMode):
    """Counts matrix products, and products of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.attentions = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.products += name in ("mm", "addmm")
        self.attentions += name.startswith("_scaled_dot_product")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("full", "products", "attentions"), [
    (False, 7 + 6, 1 + 1), (True, 2 * (3 + 4 + 6) + 7, 2 * 3 + 1)], ids=["", "disk full"])
def test_no_product_is_computed_twice_unless_there_is_no_room_to_keep_it(
    full: bool, products: int, attentions: int, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2 blocks of 7 matrices, and the last product is nobody's input. Without room, there are 3, 4 and 6 products before
    o, gate and down, and the first block must be left with 7. Learning the arguments runs the first block once more."""
    expected = by_stream(tiny_model(), drawn_tokens(), "power")
    if full:
        monkeypatch.setattr(Outputs, "_store", lambda self, value: None)
    with Counter() as counter:
        found = by_stream(tiny_model(), drawn_tokens(), "power", batch=5)
    assert (counter.products, counter.attentions) == (7 + products, 1 + attentions)
    for name, stats in found.items():
        assert torch.allclose(stats.power, expected[name].power, rtol=1e-5)


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


def test_finished_blocks_are_given_whole_without_statistics_and_later_ones_as_ever() -> None:
    model = tiny_model()
    anatomy = describe(model)
    first, *later = stream(model, anatomy, linear(anatomy), drawn_tokens(), "gram", done=frozenset({0}))
    assert len(first) == 7
    assert {view.stats.tokens for view in first} == {0}
    expected = by_stream(tiny_model(), drawn_tokens())
    assert [len(views) for views in later] == [3, 1, 2, 1]
    assert all(torch.equal(view.stats.gram, expected[view.site.name].gram) for views in later for view in views)


def test_a_matrix_that_no_pass_comes_to_is_given_without_statistics_at_the_end_of_its_block() -> None:
    model = tiny_model()
    anatomy = describe(model)
    model.model.layers[0].unused = torch.nn.Linear(32, 8, device="meta")
    site = LinearSite("model.layers.0.unused", 0, (8, 32), "model.layers.0.unused")
    first = Block(anatomy.blocks[0].name, (site, *anatomy.blocks[0].sites))
    groups = list(stream(model, Anatomy((first, anatomy.blocks[1])), [site, *linear(anatomy)], drawn_tokens(), "gram"))
    assert [view.site.name for view in groups[4]] == [site.name]
    assert groups[4][0].stats.tokens == 0


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
