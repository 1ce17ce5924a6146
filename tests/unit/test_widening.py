"""Products in half precision on a processor without instructions for it: what they give, what they keep, and whom they leave alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from prunus import widening
from prunus.widening import as_it_is, widened

from ..tiny import tiny_model

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """On a processor without instructions for halves; operands of what was widened."""
    seen: list[tuple[Tensor, Tensor]] = []
    real = widening._Product.apply

    def apply(inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Any:
        seen.append((inputs, weight))
        return real(inputs, weight, bias, dtype)

    monkeypatch.setattr(widening, "_slow_dtypes", lambda: frozenset({HALF, torch.float16}))
    monkeypatch.setattr(widening._Product, "apply", apply)
    return seen


def _layer(dtype: torch.dtype = HALF, bias: bool = True, device: str = "cpu") -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(24, 40, bias=bias, dtype=dtype, device=device)


def _drawn(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [HALF, torch.float16])
@pytest.mark.parametrize("part", [1 << 22, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_the_one_in_float32_rounded(dtype: torch.dtype, part: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widening, "_PART", part)
    layer = _layer(dtype, bias)
    inputs = _drawn(2, 16, 24, dtype=dtype).requires_grad_(True)
    slope = _drawn(2, 16, 40, dtype=dtype)
    wide = _layer(torch.float32, bias)
    wide.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    same = inputs.detach().float().requires_grad_(True)
    expected = wide(same)
    expected.backward(slope.float())
    with widened():
        found = layer(inputs)
        found.backward(slope)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))
    pairs = [(inputs, same), *zip(layer.parameters(), wide.parameters(), strict=True)]
    for mine, theirs in pairs:
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad, theirs.grad.to(dtype))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_a_gradient_is_the_one_in_float32_rounded(masked: bool) -> None:
    mask = torch.zeros(20, 20, dtype=HALF).masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf) if masked else None
    given = [_drawn(2, 3, 20, 8).add(place).requires_grad_(True) for place in range(3)]
    wide = [value.detach().float().requires_grad_(True) for value in given]
    slope = _drawn(2, 3, 20, 8)
    expected = scaled_dot_product_attention(*wide, None if mask is None else mask.float(), is_causal=not masked)
    expected.backward(slope.float())
    with widened():
        found = scaled_dot_product_attention(*given, attn_mask=mask, is_causal=not masked)
        found.backward(slope)
    assert found.dtype == HALF
    assert torch.equal(found, expected.to(HALF))
    for mine, theirs in zip(given, wide, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad.to(HALF))


@pytest.mark.parametrize("masked", [False, True])
def test_single_positions_look_back_at_keys_that_heads_share(masked: bool) -> None:
    query, key, value = _drawn(2, 6, 1, 8), _drawn(2, 3, 20, 8).add(1), _drawn(2, 3, 20, 8)
    mask = torch.ones(1, 20).tril(9).bool() if masked else None
    expected = scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask, scale=0.5, enable_gqa=True)
    with widened():
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=False, scale=0.5, enable_gqa=True)
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)
    assert float(expected.abs().max()) > 0.5


def _kept_by_attention(value: Tensor) -> set[torch.dtype]:
    """Numbers that it keeps for a backward pass."""
    kept: list[Tensor] = []
    with widened(), torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        assert scaled_dot_product_attention(value, value, value).dtype == value.dtype
    return {value.dtype for value in kept if value.dim() == 4}


def test_attention_is_left_alone_where_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _drawn(1, 2, 20, 8)
    assert _kept_by_attention(one.clone().requires_grad_(True)) == {torch.float32}
    assert _kept_by_attention(one.double().requires_grad_(True)) == {torch.float64}
    assert not _kept_by_attention(one)
    monkeypatch.setattr(widening, "_slow_dtypes", lambda: frozenset({torch.float16}))
    assert _kept_by_attention(one.clone().requires_grad_(True)) == {HALF}


def test_what_a_backward_pass_needs_is_kept_as_it_is() -> None:
    layer, kept = _layer(), []
    with widened(), torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        layer(_drawn(32, 24).requires_grad_(True))
    assert [value.dtype for value in kept] == [HALF, HALF]
    assert kept[1].data_ptr() == layer.weight.data_ptr()


def test_under_autocast_weights_in_float32_are_multiplied_by_rounded_inputs_and_get_whole_gradients(products: list[Any]) -> None:
    layer = _layer(torch.float32)
    with widened(), torch.autocast("cpu", dtype=HALF):
        found = layer(_drawn(32, 24, dtype=torch.float32))
    found.float().square().sum().backward()
    assert found.dtype == HALF
    assert len(products) == 1
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert not torch.equal(layer.weight.grad, layer.weight.grad.to(HALF).float())


def test_few_rows_other_numbers_and_other_processors_are_left_alone(products: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with widened():
        _layer()(_drawn(15, 24))
        for dtype in (torch.float32, torch.float64):
            _layer(dtype)(_drawn(32, 24, dtype=dtype))
        with torch.autocast("cpu", dtype=HALF):
            _layer(torch.float64)(_drawn(32, 24, dtype=torch.float64))
        _layer(device="meta")(_drawn(32, 24).to("meta"))
        with as_it_is():
            _layer()(_drawn(32, 24))
    monkeypatch.setattr(widening, "_slow_dtypes", lambda: frozenset({torch.float16}))
    with widened():
        _layer()(_drawn(32, 24))
        with torch.autocast("cpu", dtype=HALF):
            _layer(torch.float16)(_drawn(32, 24, dtype=torch.float16))
    assert not products


@pytest.mark.parametrize(("found", "slow"), [
    ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, {HALF, torch.float16}),
    ({"architecture": "x86_64", "avx512_bf16": True}, {torch.float16}), ({"architecture": "x86_64", "amx_bf16": True}, {torch.float16}),
    ({"architecture": "x86_64", "amx_bf16": True, "avx512_fp16": True}, set()), ({"architecture": "aarch64"}, set()), (None, set())])
def test_what_a_processor_says_decides(found: dict[str, Any] | None, slow: set[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if found is None:  # of an older PyTorch nothing is known
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert widening._slow_dtypes.__wrapped__() == slow


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_says_the_same_and_learns_the_same(family: str, products: list[Any]) -> None:
    model = tiny_model(family).to(HALF)
    tokens = torch.arange(48).view(2, 24)

    def answers() -> list[Tensor]:
        model.zero_grad()
        logits = model(input_ids=tokens, use_cache=False).logits
        logits.float().square().mean().backward()
        return [logits.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]

    plain = answers()
    assert not products
    with widened():
        found = answers()
    assert len(products) > 8
    for mine, theirs in zip(found, plain, strict=True):
        distance = (mine.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-6)
        assert distance < 0.05
