"""Orders of inputs for n:m keep more importance, by the count of the masks themselves and of every order that there is."""

import itertools

import pytest
import torch
from torch import Tensor

from prunus.granularity import NM, keep_mask
from prunus.permutation import best_order, kept_of

from ..problems import generator

RATIOS = [(2, 4), (1, 4), (3, 4), (4, 8), (6, 8), (1, 2)]


def drawn(seed: int, channels: int = 48, rows: int = 20, parts: int = 1) -> Tensor:
    """Saliencies of unequal channels, those of neighbours alike, as the order of a model's channels may be unlucky."""
    draw = generator(seed)
    level = torch.rand(parts, 1, channels, generator=draw).sort(dim=2).values ** 3
    return level * torch.rand(parts, rows, channels, generator=draw)


def counted(saliency: Tensor, n: int, m: int) -> float:
    """The importance that n:m masks keep, part by part."""
    return sum(float(part[keep_mask(part, 1 - n / m, NM(n, m))].double().sum()) for part in saliency)


def in_order(saliency: Tensor, order: Tensor) -> Tensor:
    return torch.stack([part[:, places] for part, places in zip(saliency, order, strict=True)])


@pytest.mark.parametrize(("n", "m"), RATIOS)
def test_what_is_kept_is_what_masks_keep(n: int, m: int) -> None:
    saliency = drawn(0, parts=2)
    assert kept_of(saliency, n, m) == pytest.approx(counted(saliency, n, m), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), RATIOS)
@pytest.mark.parametrize("parts", [1, 3])
def test_an_order_holds_every_channel_once_and_keeps_more(n: int, m: int, parts: int) -> None:
    saliency = drawn(1, parts=parts)
    order = best_order(saliency, n, m)
    assert (order.sort(dim=1).values == torch.arange(48)).all()
    assert counted(in_order(saliency, order), n, m) > 1.01 * counted(saliency, n, m)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("window", [8, 16, 256])
def test_more_sweeps_never_keep_less(seed: int, window: int) -> None:
    saliency = torch.rand(1, 10, 64, generator=generator(seed))
    kept = [counted(saliency, 2, 4)]
    kept += [counted(in_order(saliency, best_order(saliency, 2, 4, sweeps, window)), 2, 4) for sweeps in (0, 1, 2, 4)]
    assert kept == sorted(kept)
    assert kept[-1] > kept[0]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 4)])
def test_in_the_end_no_exchange_of_two_channels_keeps_more(n: int, m: int) -> None:
    saliency = drawn(2, channels=16)
    order = best_order(saliency, n, m)[0]
    best = counted(saliency[:, :, order], n, m)
    for one, other in itertools.combinations(range(16), 2):
        turned = order.clone()
        turned[one], turned[other] = order[other], order[one]
        assert counted(saliency[:, :, turned], n, m) <= best * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_of_all_ways_to_make_two_groups_it_is_within_two_hundredths_of_the_best(seed: int) -> None:
    saliency = torch.rand(1, 12, 8, generator=generator(seed)) ** 3
    found = counted(in_order(saliency, best_order(saliency, 2, 4)), 2, 4)
    best = max(counted(saliency[:, :, [*first, *(place for place in range(8) if place not in first)]], 2, 4)
               for first in itertools.combinations(range(8), 4))
    assert 0.98 * best <= found <= best * (1 + 1e-6)


def test_an_order_that_cannot_be_better_stays() -> None:
    for saliency, n, m in ((torch.ones(1, 5, 16), 2, 4), (drawn(4, 4), 2, 4), (drawn(4, 16, parts=2), 4, 4)):
        assert (best_order(saliency, n, m) == torch.arange(saliency.shape[2])).all()


def test_the_same_seed_gives_the_same_order() -> None:
    saliency = drawn(3, channels=96)
    assert torch.equal(best_order(saliency, 2, 4, window=16, seed=4), best_order(saliency, 2, 4, window=16, seed=4))
