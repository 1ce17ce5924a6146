"""What a block gives at some positions is what it gives there when it computes all of them, and so are its gradients."""

from contextlib import ExitStack

import pytest
import torch

from prunus.anatomy import describe
from prunus.calibration.blocks import enter, evaluating
from prunus.calibration.placement import Placement
from prunus.calibration.positions import at_positions
from prunus.silence import silenced
from prunus.sites import LinearSite

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
