"""The laws of every training strategy, and which networks each of them trains."""

import random
from functools import cache
from typing import Any

import pytest
import torch

from prunus.errors import RecipeError
from prunus.finetune import Training, train_supernet
from prunus.lookup import find, names
from prunus.search.genome import Architectures
from prunus.search.sampling import Sampling
from prunus.search.space import Candidate
from prunus.supernet import Net, TrainingStrategy
from prunus.supernet.fixed import Fixed

from ..genomes import prefix_of
from ..problems import generator
from ..tiny import WORDS, tiny_model

NAMES = names("supernet")
ALONE = ("standard", "distilled")  # train the dense model only
LARGE, SMALL = (3, 3, 47), (0, 0, 0)
every_strategy = pytest.mark.parametrize("name", NAMES)


@cache
def genome() -> Architectures:
    return prefix_of(tiny_model("bert", num_hidden_layers=4))


def asked(strategy: TrainingStrategy, step: int = 9, steps: int = 10, seed: int = 0) -> list[Net]:
    def loss(candidate: Candidate) -> float:
        return float(sum(candidate))
    return strategy.nets(genome(), step, steps, random.Random(seed), loss)


@every_strategy
def test_every_network_is_one_of_the_genome_and_depends_on_the_seed_alone(name: str) -> None:
    strategy = find("supernet", name)()
    assert isinstance(strategy, TrainingStrategy)
    for seed in range(20):
        nets = asked(strategy, seed % 10, seed=seed)
        assert nets
        assert nets == asked(strategy, seed % 10, seed=seed)
        for net in nets:
            assert net.candidate is None or all(0 <= value < size for value, size in zip(net.candidate, genome().sizes, strict=True))
            assert net.temperature is None or net.candidate is not None or name == "distilled"
    assert (len({repr(asked(strategy, seed=seed)) for seed in range(20)}) > 1) == (name not in ALONE)


@pytest.mark.parametrize(("name", "shape"), [
    ("standard", [("dense", False)]), ("random", [("drawn", False)] * 3), ("linear_random", [("drawn", False)] * 3),
    ("sandwich", [("dense", False), ("small", False), *[("drawn", False)] * 3]), ("kd", [("drawn", True)] * 3),
    ("one_shot", [("dense", False), ("small", True), *[("drawn", True)] * 3]),
    ("one_shot_upper", [("dense", False), *[("drawn", True)] * 3]), ("fixed", [("dense", False), *[("drawn", True)] * 3]),
    ("distilled", [("dense", True)]),
])
def test_the_networks_of_a_step_are_those_of_the_paper(name: str, shape: list[tuple[str, bool]]) -> None:
    """With three random ones at temperature 7, in the last step, where linear strategies are sure to train them."""
    settings: dict[str, Any] = {} if name in ALONE else {"subnets": 3}
    if any(taught for _, taught in shape):
        settings["temperature"] = 7.0
    nets = asked(find("supernet", name)(**settings), seed=3)
    assert [net.temperature for net in nets] == [7.0 if taught else None for _, taught in shape]
    assert [net.candidate is None for net in nets] == [kind == "dense" for kind, _ in shape]
    assert [net.candidate == SMALL for net in nets] == [kind == "small" for kind, _ in shape]


def test_all_strategies_have_their_shape_tested() -> None:
    assert NAMES == ["distilled", "fixed", "kd", "linear_random", "one_shot", "one_shot_upper", "random", "sandwich", "standard"]


@pytest.mark.parametrize("name", ["linear_random", "kd"])
def test_sub_networks_are_trained_with_a_chance_that_grows_from_0_to_1(name: str) -> None:
    """At a quarter of the steps in a quarter of 1000 draws; the deviation is 14, four are allowed."""
    strategy = find("supernet", name)()
    trained = [sum(asked(strategy, step, 101, seed) != [Net()] for seed in range(1000)) for step in (0, 25, 75, 100)]
    assert trained[0] == 0
    assert trained[3] == 1000
    assert abs(trained[1] - 250) <= 56
    assert abs(trained[2] - 750) <= 56


def test_fixed_draws_depths_between_the_least_and_the_most_with_all_heads_and_channels() -> None:
    found = {net.candidate for seed in range(50) for net in asked(Fixed(), seed=seed)[1:]}
    assert found == {(1, 3, 47), (2, 3, 47)}
    with pytest.raises(RecipeError, match="the genome has no variable 3 with a value between"):
        asked(Fixed(variable=3))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*ALONE, "fixed")])
def test_sampling_is_what_the_strategy_draws_by(name: str) -> None:
    class Mine:
        def draw(self, genome: Any, count: int, rng: random.Random, loss: Any) -> list[Candidate]:
            return [(1, 2, 3)] * count

    strategy: Any = find("supernet", name)(sampling=Sampling(by="strata", strata=(0.0, 0.0, 0.0, 1.0)))
    drawn = [net.candidate for seed in range(5) for net in asked(strategy, seed=seed) if net.candidate not in (None, SMALL)]
    assert min(genome().remaining(candidate) for candidate in drawn if candidate) > 0.7
    object.__setattr__(strategy, "sampling", Mine())
    assert [net.candidate for net in asked(strategy)][-2:] == [(1, 2, 3)] * 2


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALONE])
def test_no_sub_network_and_no_temperature_are_refused(name: str) -> None:
    kind = find("supernet", name)
    with pytest.raises(RecipeError, match="subnets = 0"):
        kind(subnets=0)
    if hasattr(kind(), "temperature"):
        with pytest.raises(RecipeError, match="temperature = 0: expected"):
            kind(temperature=0.0)


@every_strategy
def test_every_strategy_trains_and_leaves_the_model_whole(name: str) -> None:
    model, before = (tiny_model(num_hidden_layers=4) for _ in range(2))
    tokens = torch.randint(WORDS, (8, 12), generator=generator(0))
    modules = list(map(str, model.modules()))
    strategy = find("supernet", name)()
    teacher = tiny_model(seed=1) if getattr(strategy, "teacher", "") == "other" else None
    done = train_supernet(model, prefix_of(model), strategy, tokens, Training(epochs=2, batch=4, rate=1e-3), teacher=teacher)
    assert done.steps == 4
    assert done.passes >= 4
    assert list(map(str, model.modules())) == modules
    assert not any(module._forward_pre_hooks for module in model.modules())
    moved = [not torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), before.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
    assert not any(parameter.grad is not None for parameter in model.parameters())
