"""Sub-networks that need no search."""

import copy
import itertools
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.search.baselines import fewest_heads, first_layers, least, rescaled, retraining_free
from prunus.search.subnetwork import Units
from prunus.silence import gated

from ..tiny import tiny_model

TOKENS = torch.randint(3, 256, (4, 12), generator=torch.Generator().manual_seed(0))


def units_and_gradients(layers: int = 2) -> tuple[Units, dict[str, torch.Tensor]]:
    units = Units(describe(tiny_model("bert", num_hidden_layers=layers)), {})
    generator = torch.Generator().manual_seed(0)
    return units, {site.name: torch.randn(6, site.count, generator=generator) for site in units.sites}


def test_layers_go_from_the_top() -> None:
    units, _ = units_and_gradients(3)
    found = first_layers(units)
    assert [round(3 * units.remaining(kept)) for kept in found] == [1, 2, 3]
    assert all(kept["bert.encoder.layer.0.mlp.channels"].all() for kept in found)


def test_the_least_heads_of_all_blocks_go_first() -> None:
    units, gradients = units_and_gradients()
    importance = {name: rows.abs().mean(0) for name, rows in gradients.items()}
    found = fewest_heads(units, importance, steps=8)
    names = [site.name for site in units.sites if "attention" in site.name]
    values = torch.cat([importance[name] for name in names])
    for kept in found:
        mask = torch.cat([kept[name] for name in names])
        assert mask.all() or values[mask].min() > values[~mask].max()
        assert all(kept[site.name].all() for site in units.sites if "mlp" in site.name)
    assert [int(sum(kept[name].sum() for name in names)) for kept in found] == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_shares_are_met(share: float) -> None:
    units, gradients = units_and_gradients()
    importance = {name: rows.square().sum(0) for name, rows in gradients.items()}
    assert share - 0.05 < units.remaining(least(units, importance, share)) <= share + 1e-9
    assert share - 0.05 < units.remaining(retraining_free(units, gradients, share)) <= share + 1e-9


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_where_keys_and_values_are_kept_an_attention_stays(share: float) -> None:
    units = Units(describe(tiny_model(num_hidden_layers=2)), {})
    worthless = {site.name: torch.full((4, site.count), 1e-3 if units.attends(site) else 1.0) for site in units.sites}
    for kept in (least(units, {name: rows.sum(0) for name, rows in worthless.items()}, share), retraining_free(units, worthless, share)):
        assert sum(int(kept[site.name].sum()) for site in units.sites if units.attends(site)) == 1
        units.extract(copy.deepcopy(tiny_model(num_hidden_layers=2)), kept)


def test_the_knapsack_is_the_best_of_all_masks_before_channels_are_exchanged() -> None:
    """With orthogonal gradients nothing is exchanged, and every mask within the budget can be looked at."""
    units = Units(describe(tiny_model("bert", num_hidden_layers=1, intermediate_size=8)), {})
    generator = torch.Generator().manual_seed(3)
    counts = [site.count for site in units.sites]
    weights = torch.rand(sum(counts), generator=generator) + 0.1
    whole = torch.diag(weights)
    gradients = dict(zip([site.name for site in units.sites], whole.split(counts, dim=1), strict=True))
    costs = torch.cat([torch.full((site.count,), site.size / site.count) for site in units.sites])
    best = max(float((weights.square() * torch.tensor(mask)).sum()) for mask in itertools.product((0.0, 1.0), repeat=sum(counts))
               if float((costs * torch.tensor(mask)).sum()) <= 0.5 * units.size + 1e-9)
    found = torch.cat([retraining_free(units, gradients, 0.5)[site.name] for site in units.sites])
    assert float((weights.square() * found).sum()) == pytest.approx(best)


def test_channels_are_exchanged_where_that_leaves_more() -> None:
    """Two that go cancel each other."""
    units = Units(describe(tiny_model("bert", num_hidden_layers=1, intermediate_size=4)), {})
    attention, mlp = (site.name for site in units.sites)
    rows = torch.tensor([[1.0, -1.0, 0.8, 0.7], [1.0, -1.0, 0.8, 0.0]])
    gradients = {attention: 100 * torch.ones(2, 4), mlp: rows}
    share = units.sites[0].size / units.size + 0.5 * units.sites[1].size / units.size
    kept = retraining_free(units, gradients, share)
    assert kept[attention].all()
    assert kept[mlp].tolist() == [False, False, True, True]


def test_factors_bring_the_outputs_nearer_to_the_teacher() -> None:
    model = tiny_model("bert")
    units = Units(describe(model), {})
    kept = {site.name: units.first(site, site.count // 2) for site in units.sites}
    teacher = {site.name: units.first(site, site.count) for site in units.sites}

    def run() -> None:
        model(input_ids=TOKENS)

    scales = rescaled(model, units, kept, teacher, [run])
    assert all(bool((scales[name][~kept[name]] == 0).all()) for name in kept)
    gates = {site.consumer: scales[site.name].repeat_interleave(site.width) for site in units.sites}
    with torch.no_grad():
        whole = model(input_ids=TOKENS).logits
        with units.worn(model, kept):
            plain = model(input_ids=TOKENS).logits
            with gated(model, gates):
                better = model(input_ids=TOKENS).logits
    assert (better - whole).norm() < (plain - whole).norm()


BEHIND = {"bert": ("attention.output.LayerNorm", "output.LayerNorm"), "llama": ("post_attention_layernorm", ""), "gpt_neox": ("", "")}


@pytest.mark.parametrize("family", BEHIND)
def test_factors_are_the_damped_least_squares_ones_branch_by_branch(family: str) -> None:
    """Found again from whole passes through the model, by stacking the damping below the system."""
    model = tiny_model(family, num_hidden_layers=3)
    units = Units(describe(model), {})
    kept = {site.name: units.first(site, 0 if place == 1 else site.count // 2) for place, site in enumerate(units.sites)}
    teacher = {site.name: units.first(site, max(site.count - 1, 1)) for site in units.sites}
    rows = [TOKENS, TOKENS.flip(1)]
    found = rescaled(model, units, kept, teacher, [lambda tokens=tokens: model(input_ids=tokens) for tokens in rows])

    def through(site: Any, masks: Any, scales: Any) -> list[torch.Tensor]:
        """What the consumer reads, and what is behind the residual sum; nothing reads that where the MLP behind it is gone."""
        block, kind = units.anatomy.blocks[site.block].name, 0 if units.attends(site) else 1
        seen: list[list[Any]] = [[], [], []]
        hooks = [model.get_submodule(site.consumer).register_forward_hook(lambda _, given, __: seen[0].append(given[0])),
                 model.get_submodule(block).register_forward_hook(lambda _, __, gives: seen[2].append(gives))]
        if BEHIND[family][kind]:
            behind = model.get_submodule(f"{block}.{BEHIND[family][kind]}")
            hooks.append(behind.register_forward_hook(lambda _, given, __: seen[1].append(given[0])))
        with torch.no_grad(), units.masked(model, masks), gated(model, scales):
            for tokens in rows:
                model(input_ids=tokens)
        for hook in hooks:
            hook.remove()
        return [torch.cat([one.flatten(0, -2) for one in side]).double() for side in (seen[0], seen[1] or seen[2])]

    scales: dict[str, torch.Tensor] = {}
    for site in units.sites:
        if not kept[site.name].any():
            continue
        read, behind = through(site, kept, scales)
        aim = through(site, teacher, {})[1]
        weight = model.get_submodule(site.consumer).weight.double()
        columns = torch.stack([(part @ weight[:, group].T).flatten() for group, part in
                               ((slice(first, first + site.width), read[:, first : first + site.width])
                                for first in range(0, weight.shape[1], site.width))], 1)
        system = torch.cat([columns, torch.eye(site.count, dtype=torch.float64)])
        change = torch.linalg.lstsq(system, torch.cat([(aim - behind).flatten(), torch.zeros(site.count).double()])).solution
        expected = (1 + change) * kept[site.name]
        assert torch.allclose(found[site.name].double(), expected, rtol=1e-4, atol=1e-5), site.name
        scales[site.consumer] = expected.float().repeat_interleave(site.width)
