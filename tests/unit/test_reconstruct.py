"""What is kept of a block is trained towards the dense block, and never made worse."""

import copy
import random
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.calibration import teaching
from prunus.calibration.placement import Placement
from prunus.errors import RecipeError
from prunus.recovery import Recovery
from prunus.recovery.distill import Distill
from prunus.recovery.patch import Patch
from prunus.recovery.reconstruct import Reconstruct
from prunus.silence import silenced
from prunus.sites import ChannelSite
from prunus.surgery.write import clear_rows

from ..tiny import CAUSAL, branches_of, tiny_model

TOKENS = torch.randint(0, 256, (96, 32), generator=torch.Generator().manual_seed(0))
OTHERS = torch.randint(0, 256, (16, 32), generator=torch.Generator().manual_seed(1))


def narrowed(family: str = "llama", **changes: Any) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model, a copy of which a third of every MLP's channels are zero, and the parameters that were changed for it."""
    model = tiny_model(family, **changes)
    cut = copy.deepcopy(model)
    for site in describe(cut).sites("channel"):
        assert isinstance(site, ChannelSite)
        if site.count > 8:
            clear_rows(cut, site.producers, torch.arange(0, site.count, 3))
    before = dict(model.named_parameters())
    changed = {name for name, value in cut.named_parameters() if not torch.equal(value, before[name])}
    return model, cut, {name: before[name].detach().clone() for name in changed}


def masked(family: str = "llama", pattern: str = "0.6", **changes: Any) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model, a copy of which lost the smallest weights of every matrix, by the matrix or in groups of four; and the matrices."""
    model = tiny_model(family, **changes)
    cut = copy.deepcopy(model)
    names = [f"{site.name}.weight" for site in describe(cut).sites("linear")]
    for name in names:
        weight = cut.get_parameter(name).data
        if pattern == "2:4":
            weight.view(-1, 4).scatter_(1, weight.abs().view(-1, 4).topk(2, largest=False).indices, 0)
        else:
            weight[weight.abs() <= weight.abs().float().quantile(float(pattern))] = 0
    return model, cut, {name: model.get_parameter(name).detach().clone() for name in names}


def repaired(cut: Any, recovery: Recovery, dense: dict[str, torch.Tensor], gone: tuple[int, ...] = (), samples: int = 96) -> Any:
    model = copy.deepcopy(cut)
    recovery.recover(model, describe(model), [branches_of(model)[index] for index in gone], dense, TOKENS[:samples], Placement(), 8)
    return model


@torch.no_grad()
def distance(model: Any, other: Any, gone: tuple[int, ...] = ()) -> float:
    """Of the logits on other text, as a share of the dense model's own."""
    dense = model(input_ids=OTHERS).logits
    with silenced(other, [branches_of(other)[index] for index in gone]):
        return float((other(input_ids=OTHERS).logits - dense).norm() / dense.norm())


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "opt", "gpt2"])
def test_a_trained_block_is_nearer_to_the_dense_one_than_a_patched_one(family: str) -> None:
    model, cut, dense = narrowed(family)
    patched, trained = repaired(cut, Patch(), dense), repaired(cut, Reconstruct(epochs=8, rate=0.015, first=True), dense)
    assert distance(model, trained) < 0.98 * distance(model, patched) < distance(model, cut)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "bert"])
def test_families_that_norm_what_is_added_are_trained_without_the_least_squares(family: str) -> None:
    model, cut, dense = narrowed(family)
    with pytest.raises(RecipeError, match="reconstruct,first=false"):
        Reconstruct(first=True).check(model, describe(model), TOKENS, Placement(), 8)
    recovery = Reconstruct(epochs=8, rate=0.015)
    recovery.check(model, describe(model), TOKENS, Placement(), 8)
    assert distance(model, repaired(cut, recovery, dense)) < distance(model, cut)


@pytest.mark.parametrize("recovery", [Reconstruct(epochs=8, rate=0.015, positions=0.5), Distill(epochs=6, rate=0.03, labels=0.0)],
                         ids=["blocks", "whole"])
@pytest.mark.parametrize("family", ["opt", "gpt2", "bert"])
def test_layer_norms_in_float16_are_trained_around_and_left_as_they_are(family: str, recovery: Recovery) -> None:
    model, cut, dense = narrowed(family, dtype=torch.float16)
    trained = repaired(cut, recovery, dense)
    assert distance(model, trained) < 0.95 * distance(model, cut)
    for (name, before), after in zip(cut.named_parameters(), trained.parameters(), strict=True):
        assert after.dtype == torch.float16, name
        assert ("norm" not in name.lower() and "ln_" not in name) or torch.equal(before, after), name


def test_branches_that_go_are_made_up_for() -> None:
    model = tiny_model(num_hidden_layers=4)
    patched, trained = (repaired(model, recovery, {}, gone=(2, 5)) for recovery in (Patch(), Reconstruct(epochs=8, rate=0.015, first=True)))
    assert distance(model, trained, (2, 5)) < distance(model, patched, (2, 5))
    assert trained.state_dict().keys() == model.state_dict().keys()


def test_zeros_stay_and_dtypes_and_what_asks_for_a_gradient_too() -> None:
    _, cut, dense = narrowed(dtype=torch.bfloat16)
    cut.model.layers[0].mlp.down_proj.weight.requires_grad_(False)
    trained = repaired(cut, Reconstruct(epochs=2, rate=1e-3), dense)
    for (name, before), after in zip(cut.named_parameters(), trained.parameters(), strict=True):
        assert not bool(after[before == 0].any()), name
        assert (after.dtype, after.requires_grad, after.grad) == (torch.bfloat16, before.requires_grad, None), name


def test_training_that_diverges_is_taken_back() -> None:
    _, cut, dense = narrowed()
    kept, wild = repaired(cut, Patch(0.3), dense), repaired(cut, Reconstruct(epochs=2, rate=1e3, first=True), dense)
    for (name, expected), found in zip(kept.named_parameters(), wild.parameters(), strict=True):
        assert torch.allclose(expected, found, atol=1e-6), name


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    _, cut, dense = narrowed()
    first, again, other = (repaired(cut, Reconstruct(epochs=2, seed=seed), dense).model.layers[1].mlp.up_proj.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_short_sequences_are_one_to_train_on_and_one_to_measure_on() -> None:
    _, cut, dense = narrowed()
    trained = copy.deepcopy(cut)
    Reconstruct(epochs=1, rate=1e-4).recover(trained, describe(trained), (), dense, TOKENS[:2], Placement(), 32)
    assert all(bool(parameter.isfinite().all()) for parameter in trained.parameters())


def test_a_single_sequence_and_numbers_out_of_range_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(RecipeError, match="1 calibration sequence"):
        Reconstruct().check(model, describe(model), TOKENS[:1], Placement(), 1)
    for settings in ({"epochs": 0}, {"rate": 0.0}, {"damping": 0.0}, {"positions": 0.0}, {"positions": 1.5}):
        with pytest.raises(RecipeError, match=next(iter(settings))):
            Reconstruct(**settings)


@torch.no_grad()
def block_error(dense: Any, model: Any) -> float:
    """Of the stream behind the last block on the calibration text, per token as a share of the dense one's square."""
    aim, found = (other(input_ids=TOKENS, output_hidden_states=True).hidden_states[1] for other in (dense, model))
    return float(((found - aim).square().sum(-1) / aim.square().sum(-1)).mean())


@pytest.mark.parametrize("unit", ["branch", "block"])
@pytest.mark.parametrize("family", CAUSAL)
def test_under_any_mask_a_block_comes_nearer_to_the_dense_one_and_the_mask_stays(family: str, unit: Any) -> None:
    model, cut, dense = masked(family)
    trained = repaired(cut, Reconstruct(epochs=3, rate=0.03, unit=unit), dense, samples=40)
    assert block_error(model, trained) < 0.9 * block_error(model, cut)
    assert distance(model, trained) < distance(model, cut)
    for name in dense:
        assert torch.equal(trained.get_parameter(name) == 0, cut.get_parameter(name) == 0), name


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "bert"])
def test_half_of_the_positions_bring_nearly_as_much_in_as_many_steps(family: str) -> None:
    model, cut, dense = masked(family)
    whole, half, few = (repaired(cut, Reconstruct(epochs=3, rate=0.03, positions=share), dense, samples=40) for share in (1.0, 0.5, 0.04))
    before = block_error(model, cut)
    assert block_error(model, half) < 0.9 * before
    assert block_error(model, whole) < block_error(model, few) < before
    for name in dense:
        assert torch.equal(half.get_parameter(name) == 0, cut.get_parameter(name) == 0), name


@pytest.mark.parametrize("rate", [1e-3, 3e-2, 1.0])
def test_whatever_the_rate_no_block_ends_with_a_larger_held_out_error_than_it_began_with(rate: float,
                                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[teaching.Taught] = []
    monkeypatch.setattr("prunus.recovery.reconstruct.train_kept",
                        lambda *given, **named: taught.append(teaching.train_kept(*given, **named)) or taught[-1])
    _, cut, dense = masked(pattern="2:4")
    repaired(cut, Reconstruct(epochs=3, rate=rate), dense)
    assert len(taught) == 2
    assert all(found.after <= found.before for found in taught)


@pytest.mark.parametrize(("epochs", "rate"), [(2, 1e3), (1, 1e30)], ids=["grows", "is no number after the last step"])
def test_training_that_diverges_is_reported_with_the_block(epochs: int, rate: float) -> None:
    _, cut, dense = masked()
    model = copy.deepcopy(cut)
    said = Reconstruct(epochs=epochs, rate=rate).recover(model, describe(model), (), dense, TOKENS, Placement(), 8)
    assert [line.split(":")[0] for line in said] == [f"recovery 'reconstruct', model.layers.{depth}" for depth in (0, 1)]
    assert all("diverged" in line and "weights are those before it" in line for line in said)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), cut.parameters(), strict=True))
    calm = Reconstruct(epochs=2, rate=1e-3)
    assert calm.recover(copy.deepcopy(cut), describe(cut), (), dense, TOKENS, Placement(), 8) == []


def test_a_loss_that_is_no_number_ends_the_training_at_once_and_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 0.0, 2.0]))
    seen: list[slice] = []

    def loss(rows: slice) -> torch.Tensor:
        seen.append(rows)
        return (weight * (float("nan") if torch.is_grad_enabled() else 1.0)).square().sum()

    groups = [slice(start, start + 1) for start in range(16)]
    taught = teaching.train_kept([weight], groups, loss, epochs=5, rates=[0.1], rng=random.Random(0))
    assert weight.tolist() == [1.0, 0.0, 2.0]
    assert (taught.before, taught.after) == (5.0, 5.0)
    assert len(seen) == 2 + 1  # held out, and one step
    assert "nan" in taught.remarks("this")[0]


def test_training_stops_when_held_out_sequences_get_worse_twice_and_keeps_the_best() -> None:
    weight = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
    shown: list[int] = []

    def loss(rows: slice) -> torch.Tensor:  # what is trained on pulls towards 5, what is held out is best at 2
        apart = rows.start % 8 == 0
        shown.extend([] if apart else [rows.start])
        return (weight[1] - (2.0 if apart else 5.0)).square()

    groups = [slice(start, start + 1) for start in range(16)]
    taught = teaching.train_kept([weight], groups, loss, epochs=50, rates=[0.05], rng=random.Random(0))
    assert len(shown) < 14 * 12
    assert taught.after == pytest.approx((float(weight[1].detach()) - 2) ** 2)
    assert taught.after < 0.2 < taught.before
    assert float(weight[0].detach()) == 0


def test_a_block_without_a_weight_and_one_without_branches_are_passed_over() -> None:
    _, cut, dense = masked()
    with torch.no_grad():
        for parameter in cut.model.layers[0].parameters():
            parameter.zero_()
    for unit in ("branch", "block"):
        trained = repaired(cut, Reconstruct(epochs=2, rate=1e-3, unit=unit), dense)
        assert not any(bool(parameter.any()) for parameter in trained.model.layers[0].parameters())
        assert not torch.equal(trained.model.layers[1].mlp.up_proj.weight, cut.model.layers[1].mlp.up_proj.weight)
    gone = repaired(cut, Reconstruct(epochs=2, rate=1e-3), dense, gone=(2, 3))
    assert all(torch.equal(*pair) for pair in zip(gone.model.layers[1].parameters(), cut.model.layers[1].parameters(), strict=True))


def test_a_pruned_weight_is_zero_after_every_step_whatever_the_optimizer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: weight.data.add_(1))
    seen: list[list[float]] = []

    def loss(rows: slice) -> torch.Tensor:
        seen.append(weight.tolist())
        return -weight.sum()

    groups = [slice(start, start + 1) for start in range(4)]
    teaching.train_kept([weight], groups, loss, epochs=1, rates=[0.1], rng=random.Random(0))
    assert seen == [[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]
    assert weight.tolist() == [4.0, 0.0]


def test_a_branch_is_trained_alone_without_its_norm_and_the_other_branch_is_not_touched_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[set[str]] = []
    _, cut, dense = masked("opt")
    model = copy.deepcopy(cut)

    def recorded(trained: Any, *given: Any, **named: Any) -> teaching.Taught:
        names.append({name for name, value in model.named_parameters() for other in trained if value is other})
        return teaching.train_kept(trained, *given, **named)

    monkeypatch.setattr("prunus.recovery.reconstruct.train_kept", recorded)
    Reconstruct(epochs=1, unit="branch").recover(model, describe(model), (), dense, TOKENS, Placement(), 8)
    assert len(names) == 4
    assert all(("attn" in name) == (index % 2 == 0) for index, found in enumerate(names) for name in found)
    matrices = {name for name, _ in model.named_parameters() if ".layers." in name and "norm" not in name}
    assert set().union(*names) == matrices


def test_least_squares_on_a_mask_find_the_best_of_the_kept_weights() -> None:
    """Compared with one least-squares problem per output."""
    model, cut, dense = masked(pattern="2:4")
    output = cut.model.layers[0].self_attn.o_proj
    read: list[torch.Tensor] = []
    output.register_forward_hook(lambda _, given, __: read.append(given[0].double().flatten(0, -2)))
    with torch.no_grad(), silenced(model, [branches_of(model)[1]]), silenced(cut, [branches_of(cut)[1]]):
        aim, found = (other(input_ids=TOKENS, output_hidden_states=True).hidden_states[1] for other in (model, cut))
    lacking, a, damping = (aim - found).double().flatten(0, -2), read[0], 0.01
    before = output.weight.detach().clone()
    patched = repaired(cut, Patch(damping), dense).model.layers[0].self_attn.o_proj.weight.detach() - before
    gram = a.T @ a / len(a)
    gram += damping * gram.diagonal().mean() * torch.eye(len(gram))
    moment = lacking.T @ a / len(a)
    for row, kept in enumerate(before != 0):
        best = torch.linalg.solve(gram[kept][:, kept], moment[row, kept])
        assert torch.allclose(patched[row, kept].double(), best, atol=1e-2 * float(best.abs().max()))
        assert not bool(patched[row, ~kept].any())
