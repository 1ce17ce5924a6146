"""Depth, width and sparsity in one: what a candidate weighs, what it computes, and what is held while it does."""

import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.errors import LoadError, RecipeError
from prunus.search.channels import ChannelSpace
from prunus.search.fitness import Fitness
from prunus.search.genome import Architectures
from prunus.search.levels import LevelStore
from prunus.search.objectives import Judge
from prunus.search.space import Query
from prunus.search.spaces.medium import Medium
from prunus.search.spaces.mixed import Mixed
from prunus.search.subnetwork import Units
from prunus.solvers.mask import Mask
from prunus.solvers.subset import Subset
from prunus.supernets import SuperNet, check_trained

from ..genomes import thin_of
from ..tiny import tiny_model

TOKENS = torch.randint(3, 250, (4, 16), generator=torch.Generator().manual_seed(0))
Make = Callable[..., tuple[Any, Architectures]]


@pytest.fixture
def mixed(tmp_path: Path) -> Make:
    """`mixed(family, …)`: a model of three blocks, and its genome with two steps and three levels."""
    def make(family: str = "llama", **settings: Any) -> tuple[Any, Architectures]:
        layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
        model, space = tiny_model(family, **{layers: 3}), Mixed(**{"steps": 2, **settings})
        return model, space.over(Units(describe(model), {}, thin_of(model, space, TOKENS, tmp_path)))

    return make


def some(genome: Architectures, count: int = 5) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [genome.draw(rng) for _ in range(count)]


def test_levels_are_evenly_spaced_and_every_branch_has_two_variables(mixed: Make) -> None:
    assert Mixed(levels=4, sparsest=0.6).sparsities == (0, 0.2, 0.4, 0.6)
    _, genome = mixed()
    assert genome.sizes == (3, 3) * 6
    assert set(genome.levels(genome.largest).values()) == {0}
    assert set(genome.levels(genome.smallest).values()) == {2}
    assert genome.kept((1, 0, 2, 0) * 3).keys() == genome.levels((1, 0, 2, 0) * 3).keys()


def test_whole_matrices_are_as_sparse_as_their_level_says(mixed: Make) -> None:
    _, genome = mixed(solver=Mask())
    for level, sparsity in enumerate((0.0, 0.35, 0.7)):
        assert genome.remaining((2, 2 - level) * 6) == pytest.approx(1 - sparsity, abs=0.03)  # a row of 32 gives whole weights


def test_zeros_count_in_params_and_in_nothing_else(mixed: Make) -> None:
    model, genome = mixed()
    judge = Judge(model, genome.units, ("loss", "params", "flops", "memory"), lambda _, levels, __: {"loss": sum(levels.values())}, 16)
    dense, half, sparse, both = (judge(genome.kept(candidate), genome.levels(candidate))
                                 for candidate in ((2, 2) * 6, (1, 2) * 6, (2, 0) * 6, (1, 0) * 6))
    assert dense == (0, 1, 1, 1)
    assert (None, *both[1:]) == judge.told(genome.kept((1, 0) * 6), genome.levels((1, 0) * 6))
    assert sparse[0] == 12
    assert sparse[2:] == dense[2:]
    assert both[2:] == half[2:]
    assert sparse[1] == pytest.approx(0.3, abs=0.03)
    assert both[1] == pytest.approx(0.3 * half[1], abs=0.03)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_service_of_fitness_values_what_is_worn(family: str, mixed: Make) -> None:
    model, genome = mixed(family)
    space = ChannelSpace(genome.units.sites, (), ())
    assert genome.units.thin
    service = Fitness(model, genome.units.anatomy, space, genome.units.thin.store, TOKENS, top=10**6)
    with torch.no_grad():
        dense = model(input_ids=TOKENS).logits.double().log_softmax(-1)
    for candidate in some(genome):
        kept, levels = genome.kept(candidate), genome.levels(candidate)
        goes = torch.cat([~kept[site.name] for site in genome.units.sites]).double().numpy()
        value = service([Query(space.candidate(goes, [levels[site.name] for site in genome.units.sites]))])[0].value
        with torch.no_grad(), genome.worn(model, candidate):
            theirs = model(input_ids=TOKENS).logits.double().log_softmax(-1)
        assert value == pytest.approx(float((dense.exp() * (dense - theirs)).sum() / TOKENS.numel()), rel=1e-4), candidate
    service.close()


def test_no_two_sparse_matrices_are_held_at_a_time(mixed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, genome = mixed()
    real, made = LevelStore.weight, []

    def weight(store: LevelStore, site: str, level: int, dense: Tensor) -> Tensor:
        assert not [found for found in made if found() is not None], site
        found = real(store, site, level, dense)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(LevelStore, "weight", weight)
    with torch.no_grad(), genome.worn(model, (2, 0, 1, 0) * 3):
        model(input_ids=TOKENS)
    assert len(made) == 21  # all matrices of three blocks, each once


def test_the_model_has_its_own_weights_back_whatever_happens(mixed: Make) -> None:
    model, genome = mixed()
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.named_parameters()}

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[1].mlp.act_fn.register_forward_hook(stop)
    broken = model.model.layers[1].mlp.up_proj
    for part in (handle, None):
        if part is None:  # inside of a matrix, too
            broken.forward = stop
        with pytest.raises(KeyboardInterrupt), torch.no_grad(), genome.worn(model, (2, 0, 2, 0) * 3):
            model(input_ids=TOKENS)
        handle.remove()
    del broken.forward
    for name, value in model.named_parameters():
        assert value.data_ptr() == before[name][0], name
        assert torch.equal(value, before[name][1]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_solved_weights_are_not_trained(mixed: Make) -> None:
    """Gradients would be those of the dense weights, which are back by then."""
    model, genome = mixed()
    with genome.worn(model, (2, 0, 2, 0) * 3), pytest.raises(RecipeError, match="have no gradients"):
        model(input_ids=TOKENS)


def test_a_store_that_is_not_whole_is_refused(mixed: Make, tmp_path: Path) -> None:
    _, genome = mixed()
    assert genome.units.thin
    names = [name for site in genome.units.sites for name in site.matrices]
    assert LevelStore.known(tmp_path, names, Mixed().sparsities) == genome.units.thin.store
    for levels, missing in ((Mixed(levels=4).sparsities, False), (Mixed().sparsities, True)):
        if missing:
            next(tmp_path.glob("*.safetensors")).unlink()
        with pytest.raises(LoadError, match="does not hold all matrices at the levels"):
            LevelStore.known(tmp_path, names, levels)


@pytest.mark.parametrize(("settings", "reason"), [
    ({"steps": -1}, "steps = -1"), ({"levels": 1}, "Without levels, use medium"), ({"sparsest": 1.0}, "sparsest = 1"),
    ({"solver": Subset()}, "does not make zeros anywhere"),
])
def test_settings_that_cannot_be(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        Mixed(**settings)


def test_a_super_network_is_trained_in_medium_and_searched_in_mixed() -> None:
    trained = SuperNet(Medium(4), {}, {})
    trained.check(Mixed(4))
    trained.check(Medium(4))
    with pytest.raises(RecipeError, match="was trained with"):
        trained.check(Mixed(5))
    with pytest.raises(RecipeError, match=r"Train with --space medium,steps=4"):
        check_trained(Mixed(4))
    with pytest.raises(RecipeError, match="are not solved here"):
        Mixed(4).over(Units(describe(tiny_model()), {}))
