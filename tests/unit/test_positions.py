"""What a block gives at some positions is what it gives there when it computes all of them, and so are its gradients."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from prunus.anatomy import describe
from prunus.calibration.blocks import enter, evaluating
from prunus.calibration.placement import Placement
from prunus.calibration.positions import at_positions
from prunus.silence import silenced
from prunus.sites import LinearSite
from prunus.widening import made_in_float32

from ..tiny import FAMILIES, tiny_model

TOKENS = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
SOME = torch.tensor([1, 4, 5, 15])


@pytest.mark.parametrize("gone", [(), (0,), (1,)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_is_right_where_it_was_asked(family: str, gone: tuple[int, ...]) -> None:
    model = tiny_model(family)
    anatomy = describe(model)
    block = anatomy.blocks[0]
    module = model.get_submodule(block.name)
    silent = [block.branches[index] for index in gone]
    with evaluating(model), ExitStack() as stack:
        with torch.no_grad():
            states = enter(model, anatomy, TOKENS, Placement(), 2, stack)
        stack.enter_context(silenced(model, silent))
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

        def found() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            output = states.run(module, 0, slice(0, 2))[:, SOME]
            return output.detach(), torch.autograd.grad(output.sin().sum(), parameters, materialize_grads=True)

        whole, gradients = found()
        read: list[int] = []
        left = [branch for branch in block.branches if branch not in silent]
        width = {site.name: site.shape[1] for site in block.sites if isinstance(site, LinearSite)}[left[-1].output]
        last = model.get_submodule(left[-1].output)
        with at_positions(model, block, left, 16, SOME), last.register_forward_pre_hook(lambda _, given: read.append(given[0].numel())):
            some, others = found()
        assert read == [2 * len(SOME) * width]
        assert torch.allclose(whole, some, atol=1e-5)
        for first, second in zip(gradients, others, strict=True):
            assert torch.allclose(first, second, atol=1e-4 * max(1.0, float(first.abs().max())))
        assert torch.equal(found()[0], whole)


class Heard(TorchFunctionMode):
    """How often PyTorch's own attention was asked."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.calls += func is scaled_dot_product_attention
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shared", [1, 3])
def test_only_positions_that_are_asked_look_at_others(shared: int, causal: bool, dtype: torch.dtype) -> None:
    """More of them than are computed together; a mask of one's own is left to PyTorch, and so is what a processor has instructions for."""
    model, length = tiny_model(), 400
    block = describe(model).blocks[0]
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, heads, length, 8, generator=generator).to(dtype).requires_grad_() for heads in (2 * shared, 2, 2)]
    some = torch.randperm(length, generator=generator)[:200].sort().values
    plain = scaled_dot_product_attention(*parts, is_causal=causal, enable_gqa=True)[..., some, :]
    with Heard() as heard, at_positions(model, block, block.branches, length, some):
        found = scaled_dot_product_attention(*parts, is_causal=causal, enable_gqa=True)
        others = heard.calls
        assert others == (0 if made_in_float32(*parts) else 1)
        scaled_dot_product_attention(*parts, attn_mask=torch.ones(length, length, dtype=torch.bool), enable_gqa=True)
        scaled_dot_product_attention(*(part[..., :9, :] for part in parts), enable_gqa=True)
        assert heard.calls == others + 2
    assert found.dtype == dtype
    assert others or not found[..., [place for place in range(length) if place not in some.tolist()], :].any()
    near = 1e-5 if dtype == torch.float32 else 0.02
    assert torch.allclose(found[..., some, :], plain, atol=near, rtol=near)
    for first, second in zip(torch.autograd.grad(plain.sin().sum(), parts), torch.autograd.grad(found[..., some, :].sin().sum(), parts),
                             strict=True):
        assert torch.allclose(first, second, atol=near * float(first.abs().max()), rtol=near)
