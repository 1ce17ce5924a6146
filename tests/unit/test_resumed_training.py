"""An interrupted training goes on where it stopped, to the bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.errors import RecipeError
from prunus.finetune import Trained, Training, TrainingProgress, train_supernet
from prunus.search.spaces.small import Small
from prunus.search.subnetwork import Units
from prunus.supernet.kd import KD
from prunus.supernet.one_shot import OneShot
from prunus.supernet.random import Random
from prunus.supernet.standard import Standard

from ..genomes import prefix_of
from ..tiny import channels_of, tiny_model
from .test_finetune import PARETO, Checkpoint, assert_equal, task, text, weights


class Stopped(Exception):
    pass


def stopping(at: int) -> Callable[[TrainingProgress], None]:
    def watch(progress: TrainingProgress) -> None:
        if progress.done == at:
            raise Stopped
    return watch


def timeless(done: Trained) -> Trained:
    return replace(done, seconds=0.0)


@pytest.mark.parametrize("strategy", [Standard(), OneShot(), KD(), PARETO, OneShot(teacher="frozen")], ids=repr)
@pytest.mark.parametrize("at", [4, 8, 10])
def test_an_interrupted_training_ends_as_if_nothing_had_happened(strategy: Any, at: int, tmp_path: Path, checkpoint: Checkpoint) -> None:
    """28 examples, 4 at a time: 14 steps in 2 epochs, kept every 3 steps and after the 7th; with dropout."""
    training = Training(epochs=2, batch=2, accumulate=2, rate=1e-3, checkpoint=3, clip=1.0)
    model, data = task(tmp_path, checkpoint, count=50)
    start = weights(model)
    whole = train_supernet(model, prefix_of(model), strategy, data, training)
    expected = weights(model)
    model.load_state_dict(start)
    with pytest.raises(Stopped):
        train_supernet(model, prefix_of(model), strategy, data, training, folder=tmp_path / "kept", watch=stopping(at))
    model.load_state_dict(start)
    seen: list[TrainingProgress] = []
    again = train_supernet(model, prefix_of(model), strategy, data, training, folder=tmp_path / "kept", watch=seen.append)
    assert whole.steps == 14
    assert seen[0].done == {4: 4, 8: 8, 10: 10}[at]
    assert_equal(weights(model), expected)
    assert timeless(again) == timeless(whole)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1


def test_adapters_are_resumed_too(tmp_path: Path) -> None:
    training = Training(epochs=3, batch=2, rate=1e-2, rank=2, checkpoint=2)
    found = []
    for stops in ((), (5,)):
        for at in (*stops, 99):
            model = tiny_model()
            try:
                train_supernet(model, prefix_of(model), OneShot(teacher="frozen"), text(), training, folder=tmp_path / f"kept{stops}",
                               watch=stopping(at))
            except Stopped:
                assert_equal(weights(model), weights(tiny_model()))
        found.append(weights(model))
    assert_equal(*found)


def test_a_training_that_has_ended_is_not_done_again(tmp_path: Path) -> None:
    model, seen = tiny_model(), []
    first = train_supernet(model, None, Standard(), text(), Training(epochs=1), folder=tmp_path / "kept")
    ended = weights(model)
    model = tiny_model()
    again = train_supernet(model, None, Standard(), text(), Training(epochs=1), folder=tmp_path / "kept", watch=seen.append)
    assert (first, seen) == (again, [])
    assert_equal(weights(model), ended)


def test_what_was_kept_of_another_training_is_refused_and_damage_is_noticed(tmp_path: Path) -> None:
    settings = Training(epochs=1, batch=4, checkpoint=1)
    with pytest.raises(Stopped):
        train_supernet(tiny_model(), None, Standard(), text(), settings, folder=tmp_path / "kept", watch=stopping(1))
    others: list[tuple[Any, ...]] = [
        (tiny_model(), None, Standard(), text(), replace(settings, rate=1e-4)), (tiny_model(), None, Standard(), text(seed=1), settings),
        (tiny_model(seed=1), None, Standard(), text(), settings), (tiny_model(), prefix_of(tiny_model()), Random(), text(), settings)]
    for other in others:
        with pytest.raises(RecipeError, match="holds another training") as error:
            train_supernet(*other, folder=tmp_path / "kept")
        assert "\n" not in str(error.value)
    orders = {site.name: torch.arange(site.count).flip(0) for site in channels_of(tiny_model())}
    for order in ({}, orders):
        genome = Small().over(Units(describe(tiny_model()), order))
        if order:
            with pytest.raises(RecipeError, match="holds another training"):
                train_supernet(tiny_model(), genome, Random(), text(), settings, folder=tmp_path / "ordered")
        else:
            with pytest.raises(Stopped):
                train_supernet(tiny_model(), genome, Random(), text(), settings, folder=tmp_path / "ordered", watch=stopping(1))
    (file,) = (tmp_path / "kept").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    seen: list[TrainingProgress] = []
    train_supernet(tiny_model(), None, Standard(), text(), settings, folder=tmp_path / "kept", watch=seen.append)
    assert seen[0].done == 1


def test_a_paused_training_goes_on_to_the_same_weights_and_never_gives_those_of_later(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """14 steps, paused after 4 and after 9, none of which ends an epoch or is a checkpoint."""
    training = Training(epochs=2, batch=4, rate=1e-3, checkpoint=3)
    model, data = task(tmp_path, checkpoint, count=50)
    start = weights(model)
    whole = train_supernet(model, None, Standard(), data, training)
    expected, parts = weights(model), []
    for share in (4 / 14, 9 / 14, 1.0, 4 / 14):
        model.load_state_dict(start)
        seen: list[TrainingProgress] = []
        done = train_supernet(model, None, Standard(), data, training, folder=tmp_path / "kept", watch=seen.append, share=share)
        parts.append((seen[0].done, done.steps, done.losses, weights(model)))
    assert [part[:2] for part in parts] == [(1, 4), (5, 9), (10, 14), (1, 4)]
    assert [len(part[2]) for part in parts] == [0, 1, 2, 0]
    assert parts[2][2] == whole.losses
    assert_equal(parts[2][3], expected)
    assert_equal(parts[3][3], parts[0][3])
