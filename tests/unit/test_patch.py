"""The repair at a cut: the best change of the matrices that are kept, by least squares."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.placement import Placement
from prunus.errors import RecipeError
from prunus.recovery.patch import Patch
from prunus.search.fitness import Fitness
from prunus.search.space import Query, Space
from prunus.silence import silenced
from prunus.sites import ChannelSite
from prunus.surgery.write import clear_rows

from ..tiny import branches_of, tiny_model

TOKENS = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))


def patched(model: Any, gone: list[int], damping: float = 1e-6) -> Any:
    changed = copy.deepcopy(model)
    sites = branches_of(model)
    Patch(damping).recover(changed, describe(model), [sites[index] for index in gone], {}, TOKENS, Placement(), 3)
    return changed


@torch.no_grad()
def streams(model: Any, gone: list[int]) -> dict[str, torch.Tensor]:
    """What every output matrix of a Llama reads, and the stream behind every block."""
    seen: dict[str, torch.Tensor] = {}
    handles = [model.get_submodule(site.output).register_forward_hook(
        lambda _, given, __, name=site.output: seen.__setitem__(name, given[0].flatten(0, 1))) for site in branches_of(model)]
    handles += [layer.register_forward_hook(lambda _, __, gives, name=f"behind {depth}": seen.__setitem__(name, gives.flatten(0, 1)))
                for depth, layer in enumerate(model.model.layers)]
    with silenced(model, [branches_of(model)[index] for index in gone]):
        model(input_ids=TOKENS)
    for handle in handles:
        handle.remove()
    return seen


def test_the_first_matrix_behind_a_cut_gets_the_least_squares_map() -> None:
    """The attention of block 0 goes; its MLP must make up for it: compared with torch's own least squares."""
    model = tiny_model()
    dense, cut = streams(model, []), streams(model, [0])
    name = "model.layers.0.mlp.down_proj"
    gap = dense["behind 0"] - cut["behind 0"]
    change = torch.linalg.lstsq(cut[name].double(), gap.double()).solution.T.float()
    found = patched(model, [0], damping=1e-9).get_submodule(name).weight - model.get_submodule(name).weight
    assert torch.allclose(found, change, atol=1e-3 * float(change.abs().max()))


def test_a_scale_of_every_row_is_the_best_of_its_kind() -> None:
    model = tiny_model()
    dense, cut = streams(model, []), streams(model, [0])
    name = "model.layers.0.mlp.down_proj"
    weight = model.get_submodule(name).weight
    changed = copy.deepcopy(model)
    Patch(1e-9, "scale").recover(changed, describe(model), [branches_of(model)[0]], {}, TOKENS, Placement(), 3)
    gap, product = dense["behind 0"] - cut["behind 0"], cut[name] @ weight.T
    best = weight * (1 + (gap * product).sum(0) / product.square().sum(0))[:, None]
    assert torch.allclose(changed.get_submodule(name).weight, best, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gone", [[0], [1], [2], [1, 2], [3, 4]])
def test_the_last_stream_is_nearer_to_the_dense_one_than_without(gone: list[int]) -> None:
    """Of a model whose branches add little, so that what one map cannot make up does not grow beyond all measure."""
    model = tiny_model(num_hidden_layers=4)
    for site in describe(model).sites("linear"):
        model.get_submodule(site.name).weight.data *= 0.4
    after = patched(model, gone, damping=0.01)
    dense, plain, repaired = (streams(*pair)["behind 3"] for pair in ((model, []), (model, gone), (after, gone)))
    assert (repaired - dense).norm() < 0.95 * (plain - dense).norm()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "opt", "gpt2", "gpt_neox", "mistral"])
def test_families_whose_branches_are_added_as_they_are_are_repaired(family: str) -> None:
    model = tiny_model(family)
    sites = branches_of(model)
    with torch.no_grad():
        dense = model(input_ids=TOKENS).logits
        with silenced(model, [sites[1]]):
            plain = model(input_ids=TOKENS).logits
        repaired_model = patched(model, [1], damping=0.01)
        with silenced(repaired_model, [sites[1]]):
            repaired = repaired_model(input_ids=TOKENS).logits
    assert (repaired - dense).norm() < (plain - dense).norm()
    assert repaired_model.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "bert", "roberta", "distilbert"])
def test_families_that_norm_what_is_added_are_refused(family: str) -> None:
    model = tiny_model(family)
    with pytest.raises(RecipeError, match="normed or scaled before it is added"):
        Patch().check(model, describe(model), TOKENS, Placement(), 4)


def test_weights_that_are_zero_stay_zero_and_what_comes_before_the_cut_stays_as_it_is() -> None:
    model = tiny_model(num_hidden_layers=3)
    weight = model.model.layers[2].mlp.down_proj.weight
    weight.data[:, ::2] = 0
    changed = patched(model, [2])
    assert bool((changed.model.layers[2].mlp.down_proj.weight[:, ::2] == 0).all())
    differing = {name for name, value in changed.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert differing == {f"model.layers.{name}.weight" for name in ("1.mlp.down_proj", "2.self_attn.o_proj", "2.mlp.down_proj")}


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_candidates_are_valued_as_the_repair_would_leave_them_and_nothing_of_it_stays(family: str) -> None:
    """Several in turn, so that some begin behind what is kept of others; OPT's matrices have biases that change too."""
    model, text = tiny_model(family, num_hidden_layers=4), TOKENS.flip(0)
    anatomy = describe(model)
    space = Space(anatomy.sites("sublayer"), (0.0, 1.0), Budget(0.5))
    before = copy.deepcopy(model.state_dict())
    with ExitStack() as stack:
        rehearsal = Patch(0.1).rehearse(model, anatomy, TOKENS, Placement(), 3, stack)
        fitness = Fitness(model, anatomy, space, None, text, rehearsal=rehearsal)
        stack.callback(fitness.close)
        for gone in ([2], [2, 5], [2, 4], [5], [2, 5, 6]):
            candidate = tuple(int(index in gone) for index in range(8))
            found = fitness([Query(candidate)])[0].value
            repaired = Fitness(patched(model, gone, 0.1), anatomy, space, None, text)
            reference = Fitness(model, anatomy, space, None, text)  # what the dense model predicts
            repaired._targets = reference._targets
            assert found == pytest.approx(repaired([Query(candidate)])[0].value, rel=1e-4), gone
            for service in (repaired, reference):
                service.close()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def without_channels(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A copy in which a third of every MLP's channels are zero, and the parameters that were changed for it."""
    changed = copy.deepcopy(model)
    for site in describe(model).sites("channel"):
        if isinstance(site, ChannelSite) and site.width == 1:
            gone = torch.arange(0, site.count, 3)
            changed.get_submodule(site.consumer).weight.data[:, gone] = 0
            clear_rows(changed, site.producers, gone)
    return changed, {name: value for name, value in model.state_dict().items() if not torch.equal(value, changed.state_dict()[name])}


def test_where_channels_go_every_branch_makes_up_for_what_the_dense_stream_has() -> None:
    """The first matrix that lost some, compared with torch's own least squares on the channels that are left; and the stream."""
    model = tiny_model(num_hidden_layers=3)
    cut, dense = without_channels(model)
    before, plain = streams(model, []), streams(cut, [])
    repaired = copy.deepcopy(cut)
    Patch(1e-9).recover(repaired, describe(model), (), dense, TOKENS, Placement(), 3)
    name, left = "model.layers.0.mlp.down_proj", torch.arange(48) % 3 != 0
    read = plain[name][:, left].double()
    gap = (before["behind 0"] - plain["behind 0"]).double()
    assert torch.allclose(repaired.get_submodule("model.layers.0.self_attn.o_proj").weight,
                          model.get_submodule("model.layers.0.self_attn.o_proj").weight, atol=1e-4)  # nothing is lacking there
    found = (repaired.get_submodule(name).weight - cut.get_submodule(name).weight).detach()
    assert torch.allclose(found[:, left], torch.linalg.lstsq(read, gap).solution.T.float(), atol=1e-3 * float(found.abs().max()))
    assert bool((found[:, ~left] == 0).all())
    after = streams(repaired, [])
    for depth in range(3):
        gaps = [(other[f"behind {depth}"] - before[f"behind {depth}"]).norm() for other in (after, plain)]
        assert gaps[0] < gaps[1]


def test_a_branch_without_any_channel_is_left_alone() -> None:
    model = tiny_model()
    cut, dense = copy.deepcopy(model), dict(model.state_dict())
    cut.model.layers[1].mlp.down_proj.weight.data.zero_()
    Patch().recover(cut, describe(model), (), dense, TOKENS, Placement(), 3)
    assert not cut.model.layers[1].mlp.down_proj.weight.any()


def test_nothing_that_goes_is_nothing_to_repair() -> None:
    model = tiny_model()
    changed = patched(model, [])
    for name, value in changed.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_damping_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected more than 0"):
        Patch(damping=0.0)
